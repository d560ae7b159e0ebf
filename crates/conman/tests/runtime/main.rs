//! The runtime's contract, kept by every runtime there is, and what only native containers promise.
//!
//! `native` and its variants need root, and `docker` the engine of the test command; without it they say so and test
//! nothing.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod contract;
mod docker;
#[path = "../docker_engine/mod.rs"]
mod docker_engine;
mod keeper_process;
mod leftovers;
mod measure;
mod native;
mod world;

use world::{Kind, World};

macro_rules! contract {
    ($($kind:ident as $module:ident: [$($test:ident),* $(,)?];)*) => {$(
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    crate::run(crate::Kind::$kind, crate::contract::$test).await;
                }
            )*
        }
    )*};
    (all $($test:ident),* $(,)?) => {
        contract! {
            Fake as fake: [$($test),*];
            Process as process: [$($test),*];
            Native as native_here: [$($test),*];
            NativeV1 as native_v1: [$($test),*];
            NativeV2 as native_v2: [$($test),*];
            Docker as docker_engines: [$($test),*];
        }
    };
}

contract! { all
    starts_and_is_killed,
    ends_by_itself,
    is_terminated_within_its_grace,
    lives_through_terminate_until_killed,
    execs,
    execs_with_much_input_and_output,
    exec_that_takes_too_long_is_killed,
    has_a_shell_that_is_resized,
    shell_ends_with_its_container,
    lives_through_shells_that_are_dropped,
    is_dialed,
    nobody_listens,
    command_is_missing,
    image_is_missing,
    keeps_its_output,
    is_adopted_after_a_restart,
    is_cleaned_up_again_and_again,
    is_lost_with_its_keeper,
    dies_at_the_deadline,
    never_starts_an_older_epoch,
    never_starts_before_the_first_deadline,
    two_hundred_at_once,
}

/// Enough for two hundred containers on an emulated machine, and less than what the test runner allows.
const TEST_MAX: std::time::Duration = std::time::Duration::from_secs(160);

/// Runs one test of the contract on a runtime, then proves that nothing is left.
async fn run<F>(kind: Kind, test: F)
where
    F: AsyncFnOnce(&mut World),
{
    let Some(mut world) = World::new(kind).await else {
        return;
    };
    tokio::time::timeout(TEST_MAX, test(&mut world))
        .await
        .expect("the test hangs");
    world.finish().await;
}
