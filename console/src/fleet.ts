// The fleet: what /v1/events tells, and each host with its containers as cells.

import { ask, type Host, why } from "./api";
import { confirmed, element } from "./dom";

interface Container {
  state: string;
  epoch: number;
  sessions: number;
}

interface HostNow {
  capacity: number;
  draining: boolean;
  containers: Map<string, Container>;
}

const hosts = new Map<string, HostNow>();
let measured = new Map<string, Host>();
let changed: () => void = () => {};

/** How often what has no event (lease margins, sessions) is asked for while the view is open. */
const MEASURE_MS = 2000;

/** Follows the fleet for as long as the page lives; the browser connects again by itself. */
export function follow(link: HTMLElement): void {
  const events = new EventSource("/v1/events");
  events.onopen = () => {
    // A new stream begins with all that there is.
    hosts.clear();
    link.textContent = "live";
  };
  events.onerror = () => {
    link.textContent = "reconnecting…";
  };
  const on = (name: string, apply: (event: any, host: HostNow) => void) =>
    events.addEventListener(name, (message) => {
      const event = JSON.parse(message.data);
      let host = hosts.get(event.host);
      if (host === undefined) {
        host = { capacity: 0, draining: false, containers: new Map() };
        hosts.set(event.host, host);
      }
      apply(event, host);
      changed();
    });
  on("host", (event, host) => {
    host.capacity = event.capacity;
    host.draining = event.draining;
    // Its containers follow: what was known of them is of an earlier stream.
    host.containers.clear();
  });
  on("draining", (event, host) => {
    host.draining = event.draining;
  });
  on("container", (event, host) => {
    host.containers.set(event.repl, event);
  });
  on("gone", (event, host) => {
    if (host.containers.get(event.repl)?.epoch === event.epoch) {
      host.containers.delete(event.repl);
    }
  });
  on("host_gone", (event) => {
    hosts.delete(event.host);
  });
}

/** Shows the fleet; returns what ends it. */
export function show(view: HTMLElement): () => void {
  const grid = element("div", { class: "hosts" });
  const said = element("p", { role: "status" });
  view.append(element("h1", {}, "Fleet"), said, grid);

  const act = async (id: string, verb: string, what: string) => {
    const title = `${verb[0]?.toUpperCase()}${verb.slice(1)} ${id}`;
    if (!(await confirmed(title, what))) {
      return;
    }
    said.textContent = `${title}…`;
    try {
      await ask(`/v1/hosts/${id}/${verb}`, "POST");
      said.textContent = `${title}: done.`;
    } catch (error) {
      said.textContent = `${title}: ${why(error)}`;
    }
  };

  const cards = new Map<string, ReturnType<typeof card>>();
  const card = (id: string) => {
    const facts = element("p", { class: "facts" });
    const cells = element("div", { class: "cells" });
    const count = () => hosts.get(id)?.containers.size ?? 0;
    const drain = element("button", {
      click: () =>
        act(id, "drain", `${id} takes nothing new, and its ${count()} containers are handed to other hosts: ` +
          "their programs are ended and started there, and terminals go on."),
    }, "Drain");
    const undrain = element("button", {
      click: () => act(id, "undrain", `${id} takes repls again. Nothing moves back.`),
    }, "Undrain");
    const preempt = element("button", {
      click: () =>
        act(id, "preempt", `${id} gets its notice and is drained of its ${count()} containers; then its processes ` +
          "are killed, as a lost machine's. A drill: only conman up can play it."),
    }, "Preemption drill");
    const root = element("section", { class: "host", "aria-label": `Host ${id}` },
      element("h2", {}, id), facts, cells,
      element("div", { class: "buttons" }, drain, undrain, preempt));
    return { root, facts, cells, drain, undrain };
  };

  const draw = () => {
    for (const [id, old] of cards) {
      if (!hosts.has(id)) {
        old.root.remove();
        cards.delete(id);
      }
    }
    for (const id of [...hosts.keys()].sort()) {
      const host = hosts.get(id)!;
      let shown = cards.get(id);
      if (shown === undefined) {
        shown = card(id);
        cards.set(id, shown);
      }
      if (shown.root.parentNode === null) {
        const next = [...cards].filter(([other]) => other > id).sort()[0];
        grid.insertBefore(shown.root, next?.[1].root.parentNode === grid ? next[1].root : null);
      }
      const known = measured.get(id);
      const margin = known?.lease_margin_ms;
      shown.facts.textContent = [
        host.draining ? "draining" : (known?.state ?? "active"),
        `${host.containers.size} of ${host.capacity} containers`,
        `${known?.sessions ?? "?"} sessions`,
        margin == null ? "lease margin unknown" : `lease margin ${(margin / 1000).toFixed(1)} s`,
      ].join(" · ");
      shown.drain.disabled = host.draining;
      shown.undrain.disabled = !host.draining;
      const repls = [...host.containers].sort(([a], [b]) => (a < b ? -1 : 1));
      shown.cells.replaceChildren(
        ...repls.map(([repl, container]) => {
          const says = `${repl}: ${container.state}, epoch ${container.epoch}`;
          return element("a", {
            class: `cell ${container.state}`, href: `#/repl/${repl}`, title: says, "aria-label": says,
          });
        }),
      );
    }
  };

  const measure = async () => {
    try {
      const answer = await ask<{ hosts: Host[] }>("/v1/hosts");
      measured = new Map(answer.hosts.map((host) => [host.id, host]));
      draw();
    } catch {
      // The line at the top already says that nothing answers.
      measured = new Map();
    }
  };
  // Events come in bursts, when a host is emptied: one drawing per frame shows them all.
  let asked = 0;
  changed = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
  };
  draw();
  void measure();
  const timer = setInterval(measure, MEASURE_MS);
  return () => {
    clearInterval(timer);
    changed = () => {};
  };
}
