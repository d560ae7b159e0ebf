// Repls: the form that starts one, and one's terminal, logs and port.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { ask, type Repl, why } from "./api";
import { element } from "./dom";

/** How long to wait before a terminal that was cut off is joined again. */
const REJOIN_MS = 300;

export function showAll(view: HTMLElement): () => void {
  const said = element("p", { role: "status" });
  const rows = element("tbody");
  const name = element("input", { required: "", pattern: "[a-z0-9]([a-z0-9\\-]*[a-z0-9])?", maxlength: "50", autocomplete: "off" });
  const command = element("input", { required: "", value: "sleep infinity" });
  const port = element("input", { type: "number", min: "1", max: "65535" });
  const form = element("form", {
    submit: async (event) => {
      event.preventDefault();
      said.textContent = `Starting ${name.value}…`;
      try {
        const spec: Record<string, unknown> = { command: ["/bin/sh", "-c", command.value] };
        if (port.value !== "") {
          spec["port"] = Number(port.value);
        }
        await ask(`/v1/repls/${name.value}`, "PUT", spec);
        await ask(`/v1/repls/${name.value}/start`, "POST");
        location.hash = `#/repl/${name.value}`;
      } catch (error) {
        said.textContent = why(error);
      }
    },
  },
  element("label", {}, "Name", name),
  element("label", {}, "Command, for /bin/sh", command),
  element("label", {}, "Port (optional)", port),
  element("button", {}, "Start"));
  view.append(element("h1", {}, "Repls"), form, said,
    element("table", {},
      element("thead", {}, element("tr", {}, ...["Name", "State", "Host", "Epoch"].map((head) => element("th", {}, head)))),
      rows));
  const draw = async () => {
    try {
      const { repls } = await ask<{ repls: Repl[] }>("/v1/repls");
      rows.replaceChildren(...repls.map((repl) => element("tr", {},
        element("td", {}, element("a", { href: `#/repl/${repl.id}` }, repl.id)),
        element("td", {}, repl.state),
        element("td", {}, repl.host ?? "–"),
        element("td", {}, String(repl.epoch ?? "–")))));
    } catch (error) {
      said.textContent = why(error);
    }
  };
  void draw();
  return () => {};
}

export function showOne(view: HTMLElement, id: string): () => void {
  const state = element("p", { class: "facts", role: "status" });
  const screen = element("div", { class: "terminal" });
  const output = element("pre", { tabindex: "0", "aria-label": "Logs" });
  const frame = element("div");
  view.append(element("h1", {}, id), state, screen, element("h2", {}, "Logs"), output, frame);

  const terminal = new Terminal({ fontSize: 13, screenReaderMode: true });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(screen);
  fit.fit();

  let isOver = false;
  let socket: WebSocket | undefined;
  const describe = async () => {
    try {
      const repl = await ask<Repl>(`/v1/repls/${id}`);
      state.textContent = `${repl.state} · ${repl.host ?? "no host"} · epoch ${repl.epoch ?? "–"}`;
      if (repl.spec.port != null && frame.childElementCount === 0) {
        // Its own origin: what a user's program serves is never of the console's.
        const port = location.port === "" ? "" : `:${location.port}`;
        const source = `${location.protocol}//${id}.${location.hostname}${port}/`;
        frame.append(element("h2", {}, `Port ${repl.spec.port}`),
          element("iframe", { src: source, title: `What ${id} serves`, sandbox: "allow-scripts allow-forms allow-same-origin" }));
      }
    } catch (error) {
      state.textContent = why(error);
    }
  };
  const notice = (text: string) => {
    const told = JSON.parse(text);
    if (told.type === "moved") {
      // The terminal's own bytes say so already, to everyone on it.
      void describe();
    } else if (told.type === "error") {
      terminal.writeln(`\r\n\x1b[31m${told.code}: ${told.message}\x1b[0m`);
    } else if (told.type === "exit") {
      isOver = true;
      terminal.writeln(`\r\n\x1b[2mthe shell has ended (${told.code}); open this view again for another\x1b[0m`);
    }
  };
  const join = () => {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const size = `columns=${terminal.cols}&rows=${terminal.rows}`;
    socket = new WebSocket(`${scheme}://${location.host}/v1/repls/${id}/shell?${size}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => void describe();
    socket.onmessage = ({ data }) =>
      typeof data === "string" ? notice(data) : terminal.write(new Uint8Array(data));
    socket.onclose = () => {
      if (!isOver) {
        setTimeout(join, REJOIN_MS);
      }
    };
  };
  const send = (data: string | ArrayBufferView<ArrayBuffer>) => {
    if (socket?.readyState === WebSocket.OPEN) {
      socket.send(data);
    }
  };
  const encoder = new TextEncoder();
  terminal.onData((text) => send(encoder.encode(text)));
  terminal.onResize(({ cols, rows }) => send(JSON.stringify({ type: "resize", columns: cols, rows })));
  const resize = () => fit.fit();
  addEventListener("resize", resize);
  join();

  const reading = new AbortController();
  const readLogs = async () => {
    const answer = await fetch(`/v1/repls/${id}/logs?follow=true`, { signal: reading.signal });
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
      output.textContent = (output.textContent + part.value).slice(-65536);
    }
  };
  readLogs().catch(() => {
    // The view was left, or the container's host: the terminal says which.
  });
  void describe();
  return () => {
    isOver = true;
    removeEventListener("resize", resize);
    reading.abort();
    socket?.close();
    terminal.dispose();
  };
}
