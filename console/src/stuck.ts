// Who is stuck, as /v1/stuck tells it.

import { ask, why } from "./api";
import { element } from "./dom";

const ASK_MS = 2000;

export function show(view: HTMLElement): () => void {
  const told = element("pre", { tabindex: "0", "aria-label": "What the tracker knows" });
  view.append(
    element("h1", {}, "Stuck"),
    element("p", { class: "quiet" }, "What the tracker knows now: its counts, and the worst open episodes."),
    told,
  );
  const draw = async () => {
    try {
      told.textContent = JSON.stringify(await ask<unknown>("/v1/stuck?worst=20"), null, 2);
    } catch (error) {
      told.textContent = why(error);
    }
  };
  void draw();
  const timer = setInterval(draw, ASK_MS);
  return () => clearInterval(timer);
}
