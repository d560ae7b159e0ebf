// The client with a real fleet (CONMAN says which binary), and with a server that refuses as a gateway may.
import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { Conman, Refused } from "../dist/conman.js";

const PATIENCE_MS = 60_000;
// What a user's own program may be: says which process it is, and gives back what it gets.
const ECHO = `
import { WebSocketServer } from "ws";
new WebSocketServer({ port: Number(process.env.PORT), host: "127.0.0.1" }).on("connection", (opened) => {
  opened.send(String(process.pid));
  opened.on("message", (message) => opened.send(message.toString()));
});
`;

let child, directory, fleet, url;

/** No name server needs to know the names of repls: it is the same gateway. */
const openSocket = (address, bearer) => {
  const { protocol, host, pathname, search } = new URL(address);
  const headers = { host, ...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }) };
  return new WebSocket(`${protocol}//${new URL(url).host}${pathname}${search}`, { headers });
};

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "conman-client-"));
  // Two hosts are preempted, and a preempted one is there for half a minute.
  const words = ["up", "--runtime", "process", "--hosts", "4", "--listen", "127.0.0.1:0", "--state", join(directory, "state")];
  child = spawn(process.env.CONMAN, words, { stdio: ["ignore", "pipe", "ignore"] });
  for await (const line of createInterface({ input: child.stdout })) {
    url = /^ready (\S+)/.exec(line)?.[1];
    if (url) break;
  }
  fleet = new Conman({ url, patienceMs: PATIENCE_MS, openSocket });
});

after(async () => {
  child.kill("SIGTERM");
  await once(child, "exit");
  rmSync(directory, { recursive: true });
});

const preempt = async (repl) => {
  const { host } = await repl.get();
  await fleet.call("POST", `/v1/hosts/${host}/preempt`);
  return host;
};

test("a repl is made, used and deleted", async () => {
  const repl = fleet.repl("commands");
  const made = await repl.create(["sleep", "infinity"], { env: { COLOUR: "blue" } });
  assert.deepEqual(made.spec.env, { COLOUR: "blue" });
  const done = await repl.exec(["sh", "-c", "cat; echo $COLOUR; echo no >&2; exit 3"], { stdin: "in " });
  assert.deepEqual(done, { exit_code: 3, stdout: "in blue\n", stderr: "no\n", truncated: false });
  assert.ok((await fleet.repls()).some(({ id }) => id === "commands"));
  await repl.kill();
  await repl.delete();
  await assert.rejects(repl.exec(["true"]), (error) => {
    assert.ok(error instanceof Refused);
    assert.deepEqual([error.status, error.code, error.side, error.isRetryable], [404, "unknown_repl", "client", false]);
    return true;
  });
});

test("two share a shell that goes on elsewhere", async (t) => {
  const repl = fleet.repl("shared");
  await repl.create(["sleep", "infinity"]);
  const [mine, others] = [await repl.shell(), await repl.shell({ columns: 100, rows: 30 })];
  t.after(() => [mine, others].forEach((shell) => shell.close()));
  const reads = async (shell, wanted) => {
    let seen = "";
    for await (const event of shell) {
      if (event.type === "output") seen += new TextDecoder().decode(event.bytes);
      if (seen.includes(wanted)) return;
    }
    assert.fail(`${wanted} is not in ${seen}`);
  };
  const hears = async (shell, type) => {
    for await (const event of shell) if (event.type === type) return event;
    assert.fail(`nothing of ${type} is said`);
  };
  mine.write("echo be$((40+2))fore\n");
  await reads(others, "be42fore");
  const victim = await preempt(repl);
  const moved = await hears(mine, "moved");
  assert.notEqual(moved.host, victim);
  mine.write("echo af$((40+2))ter\n");
  await reads(others, "af42ter");
  mine.write("exit 7\n");
  assert.equal((await hears(mine, "exit")).code, 7);
  await repl.delete();
});

test("a lost connection to a program is opened again where it runs now", async () => {
  const repl = fleet.repl("echo");
  const program = ["node", "--input-type=module", "--eval", ECHO];
  // It finds its library where this test does.
  await repl.create(["sh", "-c", 'cd "$0" && exec "$@"', process.cwd(), ...program], { port: 8000 });
  const processes = [];
  for await (const opened of repl.connect("/any")) {
    const messages = opened[Symbol.asyncIterator]();
    processes.push((await messages.next()).value);
    opened.send("there");
    assert.equal((await messages.next()).value, "there");
    if (processes.length === 2) break;
    await preempt(repl);
    assert.equal((await messages.next()).done, true);
  }
  assert.equal(new Set(processes).size, 2);
  await repl.delete();
});

test("what is safe to repeat is repeated after the time that is asked for, and nothing else", async () => {
  const asked = [];
  const server = createServer((request, answer) => {
    asked.push([request.method, request.headers.authorization, Date.now()]);
    const refusal = { error: { code: "no_host", message: "none", side: "platform", retryable: true } };
    if (asked.length % 2) answer.writeHead(503, { "retry-after": "1" }).end(JSON.stringify(refusal));
    else answer.end(JSON.stringify({ repls: [] }));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const refusing = new Conman({ url: `http://127.0.0.1:${server.address().port}`, apiKey: "secret" });
  assert.deepEqual(await refusing.repls(), []);
  assert.deepEqual(asked.map(([method, bearer]) => [method, bearer]), Array(2).fill(["GET", "Bearer secret"]));
  assert.ok(asked[1][2] - asked[0][2] >= 990);
  await assert.rejects(refusing.repl("a").exec(["true"]), { code: "no_host", retryAfterSeconds: 1 });
  assert.equal(asked.length, 3);
  server.close();
});

test("its types are those of the API's own description", async () => {
  const answer = await fetch(`${url}/v1/openapi.json`);
  const document = await answer.text();
  const made = execFileSync("npx", ["openapi-typescript"], { input: document, encoding: "utf8", stdio: ["pipe", "pipe", "ignore"] });
  const kept = readFileSync("src/api.ts", "utf8");
  assert.equal(made.trim(), kept.trim(), "make it again: npx openapi-typescript URL/v1/openapi.json -o src/api.ts");
});
