// Two pages on one repl, in a real browser: what one types the other shows, and both go on when the host is lost.
//
//   node test/browser.mjs CONMAN [SCREENSHOTS]    the binary, and where to leave screenshots
//
// The browser is Debian's, or what CHROMIUM names.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const MOVE_MS_MAX = 2000;
const [binary, screenshots] = process.argv.slice(2);
const directory = mkdtempSync(join(tmpdir(), "conman-console-"));
const fleet = spawn(binary, ["up", "--state", directory, "--listen", "127.0.0.1:0", "--runtime", "process"], {
  stdio: ["ignore", "pipe", "inherit"],
});
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});

const terminalShows = (page, wanted) =>
  page.waitForFunction(
    (text) => document.querySelector(".xterm-rows")?.textContent.replaceAll("\u00a0", " ").includes(text),
    wanted,
    { timeout: 10_000, polling: "raf" },
  );

try {
  let origin;
  for await (const line of createInterface({ input: fleet.stdout })) {
    origin = /ready (\S+)/.exec(line)?.[1];
    if (origin) break;
  }
  assert.ok(origin, "conman up is not ready");
  origin = origin.replace("127.0.0.1", "localhost");

  // A window each: a browser draws hidden tabs late.
  const open = async () => (await browser.newContext({ viewport: { width: 1100, height: 800 } })).newPage();
  const faults = [];
  const elsewhere = new Set();
  const follow = (page) => {
    page.on("pageerror", (error) => faults.push(error.message));
    page.on("console", (message) => /Content Security Policy/.test(message.text()) && faults.push(message.text()));
    page.on("request", (request) => {
      const { hostname, protocol } = new URL(request.url());
      if (protocol !== "data:" && hostname !== "localhost" && !hostname.endsWith(".localhost")) elsewhere.add(hostname);
    });
    return page;
  };
  const one = follow(await open());
  await one.goto(`${origin}/#/repls`);
  await one.getByLabel("Name").fill("shared");
  await one.getByRole("button", { name: "Start" }).click();
  await one.waitForURL(/#\/repl\/shared$/);
  const two = follow(await open());
  await two.goto(`${origin}/#/repl/shared`);
  await one.locator(".facts", { hasText: "running" }).waitFor();
  await two.locator(".facts", { hasText: "running" }).waitFor();
  for (const page of [one, two]) {
    await page.evaluate(() => (window.sameDocument = true));
  }

  const type = async (page, text) => {
    await page.locator(".xterm-helper-textarea").focus();
    await page.keyboard.type(text);
    await page.keyboard.press("Enter");
  };
  // The answer differs from what is typed, so that an echo does not pass for it.
  await type(one, "echo typed-$((40 + 2))");
  await terminalShows(one, "typed-42");
  await terminalShows(two, "typed-42");
  console.log("what one page types the other shows");

  const three = follow(await open());
  await three.goto(`${origin}/#/fleet`);
  await three.locator(".cell.running").waitFor();
  if (screenshots) {
    await three.screenshot({ path: join(screenshots, "console-fleet.png") });
  }
  const host = (await one.locator(".facts").textContent()).split(" · ")[1];
  await three.getByRole("region", { name: `Host ${host}` }).getByRole("button", { name: "Preemption drill" }).click();
  await three.getByRole("dialog").getByText("its processes").waitFor();
  const begun = performance.now();
  await three.getByRole("dialog").getByRole("button", { name: "Preempt" }).click();
  await Promise.all([terminalShows(one, "moved to"), terminalShows(two, "moved to")]);
  await type(two, "uname");
  await Promise.all([terminalShows(one, "Linux"), terminalShows(two, "Linux")]);
  const took = Math.round(performance.now() - begun);
  console.log(`the host was lost; both terminals went on after ${took} ms, of ${MOVE_MS_MAX} at the most`);
  assert.ok(took <= MOVE_MS_MAX, "a terminal went on too late");
  for (const page of [one, two]) {
    assert.equal(await page.evaluate(() => window.sameDocument), true, "a page was loaded again");
  }
  if (screenshots) {
    await one.bringToFront();
    await one.screenshot({ path: join(screenshots, "console-repl.png") });
  }
  assert.deepEqual(faults, []);
  assert.deepEqual([...elsewhere], []);
} finally {
  await browser.close();
  const ended = once(fleet, "exit");
  fleet.kill("SIGTERM");
  await ended;
  rmSync(directory, { recursive: true, force: true });
}
