/**
 * A small client of conman: create a repl by its name, run commands in it, use its terminal, talk to what it serves.
 *
 *     import { Conman } from "conman-client";
 *
 *     const fleet = new Conman({ url: "https://fleet.example", domain: "repl.example", apiKey });
 *     const repl = fleet.repl("hello");
 *     await repl.create(["python3", "-m", "http.server", "8000"], { port: 8000 });
 *     console.log((await repl.exec(["uname", "-a"])).stdout);
 *     const shell = await repl.shell();
 *     shell.write("ls\n");
 *     for await (const event of shell) console.log(event);
 *
 * Whoever uses it sees no move: what is safe to repeat is repeated while the platform says that trying again helps, after the time
 * that `Retry-After` names, and a WebSocket that was closed with 1012 (Service Restart) or lost is opened again. Nothing else is
 * repeated: a command may have run. Needs `fetch` and `WebSocket`, as browsers and Node 22 have them; elsewhere give `openSocket`.
 */

import type { components } from "./api.js";

export type Spec = components["schemas"]["Spec"];
export type ReplView = components["schemas"]["Repl"];
export type Done = components["schemas"]["ExecAnswer"];
export type Code = components["schemas"]["Error"]["error"]["code"];
export type Side = "client" | "user" | "platform";

interface ApiError {
  /** Of the closed list, unless it is not the API's. */
  code: string;
  message: string;
  side: Side;
  retryable: boolean;
}

/** How long a call, or a connection that was lost, is tried again for. */
const PATIENCE_MS = 60_000;
/** Longer than a gateway holds a request (15 s). */
const ANSWER_MS = 30_000;
const PAUSE_FIRST_MS = 100;
const PAUSE_MAX_MS = 5_000;
/** RFC 6455, section 7.4.1, and the registry that it makes: going away, lost, service restart, try again later. */
const COMES_BACK = new Set([1001, 1006, 1012, 1013]);
const REPEATABLE = new Set(["GET", "PUT", "DELETE"]);

/** What the API says, in its words: a code of a closed list, who failed, and whether it may help to try again. */
export class Refused extends Error {
  readonly code: string;
  readonly side: Side;
  readonly isRetryable: boolean;

  constructor(
    readonly status: number,
    body: string,
    readonly retryAfterSeconds: number | undefined,
  ) {
    const error = parsed(body, status);
    super(`${error.code}: ${error.message}`);
    this.name = "Refused";
    this.code = error.code;
    this.side = error.side;
    this.isRetryable = error.retryable;
  }
}

function parsed(body: string, status: number): ApiError {
  try {
    const { error } = JSON.parse(body) as { error?: ApiError };
    if (error) return error;
  } catch {
    // It is not the API's, but of whoever stands before it.
  }
  return {
    code: "unknown",
    message: body.trim() || `status ${status}`,
    side: status >= 500 ? "platform" : "client",
    retryable: [429, 502, 503, 504].includes(status),
  };
}

/** How long to wait before each further attempt: what the server says, else longer each time and never all at once. */
class Pauses {
  private readonly ends: number;
  private next = PAUSE_FIRST_MS;

  constructor(patienceMs: number) {
    this.ends = Date.now() + patienceMs;
  }

  /** Waits, unless that would be longer than the patience: then it is false. */
  async rest(askedSeconds: number | undefined): Promise<boolean> {
    const pause = askedSeconds === undefined ? this.next * (0.5 + Math.random() / 2) : askedSeconds * 1000;
    this.next = Math.min(this.next * 2, PAUSE_MAX_MS);
    if (Date.now() + pause > this.ends) return false;
    await new Promise((resolve) => setTimeout(resolve, pause));
    return true;
  }
}

export interface Options {
  /** The address of a gateway, or of the load balancer before them. */
  url?: string;
  /** Repls are served below it. */
  domain?: string;
  /** A key of the API. A browser on the console's own page has a cookie in its place. */
  apiKey?: string;
  patienceMs?: number;
  fetch?: typeof fetch;
  /** Opens a WebSocket; `bearer` is what is to be shown in `Authorization`, which browsers' own cannot send. */
  openSocket?: (url: string, bearer: string | undefined) => WebSocket;
}

/** A fleet. */
export class Conman {
  readonly url: URL;
  readonly domain: string;
  readonly patienceMs: number;
  private readonly apiKey: string | undefined;
  private readonly fetch: typeof fetch;
  private readonly openSocket: (url: string, bearer: string | undefined) => WebSocket;

  constructor(options: Options = {}) {
    this.url = new URL(options.url ?? "http://127.0.0.1:8080");
    if (!/^https?:$/.test(this.url.protocol)) throw new TypeError(`${this.url} is no address like http://127.0.0.1:8080`);
    this.domain = options.domain ?? "localhost";
    this.apiKey = options.apiKey;
    this.patienceMs = options.patienceMs ?? PATIENCE_MS;
    // It is the window's, and must be called as such.
    this.fetch = options.fetch ?? ((...asked) => fetch(...asked));
    this.openSocket = options.openSocket ?? ((url) => new WebSocket(url));
  }

  repl(name: string): Repl {
    return new Repl(this, name);
  }

  async repls(): Promise<ReplView[]> {
    return (await this.call<{ repls: ReplView[] }>("GET", "/v1/repls")).repls;
  }

  /** One call of the API. Throws `Refused`, or what `fetch` throws where there is no answer. */
  async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = {};
    if (this.apiKey !== undefined) headers["authorization"] = `Bearer ${this.apiKey}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const pauses = new Pauses(REPEATABLE.has(method) ? this.patienceMs : 0);
    for (;;) {
      let answer: Response;
      let text: string;
      try {
        const asked: RequestInit = { method, headers, signal: AbortSignal.timeout(ANSWER_MS) };
        if (body !== undefined) asked.body = JSON.stringify(body);
        answer = await this.fetch(new URL(path, this.url), asked);
        text = await answer.text();
      } catch (error) {
        if (await pauses.rest(undefined)) continue;
        throw error;
      }
      if (answer.ok) return JSON.parse(text || "null") as T;
      const refused = new Refused(answer.status, text, seconds(answer.headers.get("retry-after")));
      if (!(refused.isRetryable && (await pauses.rest(refused.retryAfterSeconds)))) throw refused;
    }
  }

  /**
   * A WebSocket that is open, tried again as `call` is. Why one is refused a browser does not say, so every one that does not open
   * is tried again.
   */
  async open(path: string, host: string | undefined, bearer: string | undefined): Promise<Connection> {
    const url = new URL(path, this.url);
    url.protocol = this.url.protocol === "https:" ? "wss:" : "ws:";
    if (host !== undefined) url.hostname = host;
    const pauses = new Pauses(this.patienceMs);
    for (;;) {
      const socket = this.openSocket(url.href, host === undefined ? this.apiKey : bearer);
      socket.binaryType = "arraybuffer";
      // It hears from the start: a server's first words may come with the opening itself.
      const connection = new Connection(socket);
      const isOpen = await new Promise<boolean>((resolve) => {
        socket.addEventListener("open", () => resolve(true));
        socket.addEventListener("error", () => resolve(false));
        socket.addEventListener("close", () => resolve(false));
      });
      if (isOpen) return connection;
      if (!(await pauses.rest(undefined))) throw new Error(`${url.href} cannot be opened`);
    }
  }
}

function seconds(retryAfter: string | null): number | undefined {
  // The form with a date is not used by conman.
  return retryAfter !== null && /^\d+$/.test(retryAfter) ? Number(retryAfter) : undefined;
}

/** One repl; there need not be one yet. */
export class Repl {
  private readonly path: string;

  constructor(
    private readonly fleet: Conman,
    readonly name: string,
  ) {
    this.path = `/v1/repls/${encodeURIComponent(name)}`;
  }

  /** Creates it, or changes it while it does not run. */
  create(command: string[], spec: Partial<Omit<Spec, "command">> = {}): Promise<ReplView> {
    return this.fleet.call("PUT", this.path, { command, ...spec });
  }

  get(): Promise<ReplView> {
    return this.fleet.call("GET", this.path);
  }

  start(): Promise<ReplView> {
    return this.fleet.call("POST", `${this.path}/start`);
  }

  /** Resolves when its death is proven. */
  async kill(): Promise<void> {
    await this.fleet.call("POST", `${this.path}/kill`);
  }

  async delete(): Promise<void> {
    await this.fleet.call("DELETE", this.path);
  }

  /** Runs a command in its container. Is never repeated. */
  exec(command: string[], { stdin = "", timeoutMs = 20_000 } = {}): Promise<Done> {
    return this.fleet.call("POST", `${this.path}/exec`, { command, stdin, timeout_ms: timeoutMs });
  }

  /** Joins its terminal, which it shares with everyone else on it. */
  async shell({ columns = 80, rows = 24 } = {}): Promise<Shell> {
    const path = `${this.path}/shell`;
    const open = (size: Size) => this.fleet.open(`${path}?columns=${size.columns}&rows=${size.rows}`, undefined, undefined);
    return new Shell(open, await open({ columns, rows }), { columns, rows });
  }

  /**
   * WebSockets to what it serves, one after the other: the next when the one before was lost to a move. Ends when the repl's own
   * program closed the connection for good, or whoever uses it did. `token` lets a user in to a private repl.
   *
   *     for await (const opened of repl.connect("/live", { token })) {
   *       for await (const message of opened) …
   *     }
   */
  async *connect(path = "/", { port, token }: { port?: number; token?: string } = {}): AsyncGenerator<Connection> {
    const host = `${port === undefined ? "" : `${port}-`}${this.name}.${this.fleet.domain}`;
    for (;;) {
      const opened = await this.fleet.open(path, host, token);
      let code: number;
      try {
        yield opened;
        code = await opened.closed;
      } finally {
        opened.close();
      }
      if (!COMES_BACK.has(code)) return;
    }
  }
}

/** An open WebSocket: what it is sent, in order, until it is closed. */
export class Connection {
  /** The code with which it was closed. */
  readonly closed: Promise<number>;
  private readonly waiting: (string | ArrayBuffer)[] = [];
  private isClosed = false;
  private wake: () => void = () => {};

  constructor(private readonly socket: WebSocket) {
    socket.addEventListener("message", (event: MessageEvent<string | ArrayBuffer>) => {
      this.waiting.push(event.data);
      this.wake();
    });
    this.closed = new Promise((resolve) =>
      socket.addEventListener("close", (event: CloseEvent) => {
        this.isClosed = true;
        this.wake();
        resolve(event.code);
      }),
    );
  }

  send(message: string | ArrayBufferLike | ArrayBufferView): void {
    this.socket.send(message as string);
  }

  close(): void {
    this.socket.close();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string | ArrayBuffer, void> {
    for (;;) {
      const message = this.waiting.shift();
      if (message !== undefined) yield message;
      else if (this.isClosed) return;
      else await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }
}

interface Size {
  columns: number;
  rows: number;
}

/** What a shell says: bytes; that the repl runs on another host, where the shell is a new one; and at last how it ended. */
export type ShellEvent =
  | { type: "output"; bytes: Uint8Array }
  | { type: "moved"; host: string; epoch: number; milliseconds: number }
  | { type: "exit"; code: number | null };

/** The terminal has not come up again. */
interface Lost {
  type: "error";
  code: string;
  message: string;
}

/** A terminal that outlives moves. */
export class Shell {
  constructor(
    private readonly open: (size: Size) => Promise<Connection>,
    private connection: Connection,
    private size: Size,
  ) {}

  /** Keys that are typed while there is no connection are lost: whether earlier ones arrived is not known either. */
  write(keys: string | Uint8Array): void {
    this.connection.send(typeof keys === "string" ? new TextEncoder().encode(keys) : keys);
  }

  resize(columns: number, rows: number): void {
    this.size = { columns, rows };
    this.connection.send(JSON.stringify({ type: "resize", columns, rows }));
  }

  close(): void {
    this.connection.close();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ShellEvent, void> {
    for (;;) {
      for await (const message of this.connection) {
        if (typeof message !== "string") {
          yield { type: "output", bytes: new Uint8Array(message) };
          continue;
        }
        const told = JSON.parse(message) as Exclude<ShellEvent, { type: "output" }> | Lost;
        if (told.type === "error") throw new Refused(0, JSON.stringify({ error: { ...told, side: "platform", retryable: true } }), undefined);
        yield told;
        if (told.type === "exit") return;
      }
      if (!COMES_BACK.has(await this.connection.closed)) return;
      this.connection = await this.open(this.size);
    }
  }
}
