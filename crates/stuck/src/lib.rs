//! Stuck episodes out of logs that anybody wrote: formats, the streaming cruncher, reports.

pub mod batch;
pub mod block;
pub mod classify;
pub mod day;
pub mod doc;
pub mod engine;
pub mod entities;
pub mod expr;
pub mod format;
pub mod guess;
pub mod json;
pub mod live;
pub mod order;
pub mod plan;
pub mod query;
pub mod record;
pub mod report;
pub mod run;
pub mod sorter;
pub mod source;
pub mod stamp;
pub mod stencil;
pub mod summary;
pub mod template;
pub mod tracker;
