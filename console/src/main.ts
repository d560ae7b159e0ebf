// The console: three views by the address's fragment, each live while it is open.

import "@xterm/xterm/css/xterm.css";
import "./style.css";
import * as fleet from "./fleet";
import * as repl from "./repl";
import * as stuck from "./stuck";

const view = document.getElementById("view")!;
const link = document.getElementById("link")!;
let leave: () => void = () => {};

function route(): void {
  leave();
  view.replaceChildren();
  const [, name, id] = location.hash.split("/");
  const section = name === "repl" ? "repls" : name || "fleet";
  for (const anchor of document.querySelectorAll("nav a")) {
    const isHere = anchor.getAttribute("href") === `#/${section}`;
    anchor.toggleAttribute("aria-current", isHere);
  }
  if (name === "repl" && id) {
    leave = repl.showOne(view, id);
  } else if (name === "repls") {
    leave = repl.showAll(view);
  } else if (name === "stuck") {
    leave = stuck.show(view);
  } else {
    leave = fleet.show(view);
  }
}

fleet.follow(link);
addEventListener("hashchange", route);
route();
