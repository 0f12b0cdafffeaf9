// Tests the page in a real browser. consumer/tests/it/page.rs fills the tables, starts the server and this script, and
// performs the actions that this requests: a line "ask …" on stdout, answered by a line "done" on stdin.
//
// Environment: PAGE_ONLY (a pattern of the steps to take; default: all), PAGE_ORIGIN, PAGE_GUARDED_ORIGIN (asks for tokens), PAGE_SCREENSHOTS (a folder), TEST_CHROMIUM, TEST_PAGE_MODULES (a folder with node_modules).
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { mkdtempSync, mkdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { PAGE_ORIGIN: origin, PAGE_GUARDED_ORIGIN: guarded, PAGE_SCREENSHOTS: screenshots, TEST_CHROMIUM: executablePath, TEST_PAGE_MODULES: modules } = process.env;
const require = createRequire(join(modules, "x.js"));
const { chromium } = require("playwright-core");
const axe = require("axe-core").source;

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
  "--disable-sync",
];
const PATIENCE = 30000;

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function ask(what) {
  process.stdout.write(`ask ${what}\n`);
  const { value } = await answers.next();
  assert.equal(value, "done");
}

const userDataDir = mkdtempSync(join(tmpdir(), "page-"));
mkdirSync(screenshots, { recursive: true });
const options = {
  executablePath,
  args: FLAGS,
  headless: true,
  viewport: { width: 1280, height: 900 },
  timezoneId: "Asia/Tokyo",
  colorScheme: "light",
  reducedMotion: "no-preference",
  acceptDownloads: false,
};
const browser = await chromium.launchPersistentContext(userDataDir, options);
browser.setDefaultTimeout(PATIENCE);
const faults = [];
let expectsFaults = false;

function watch(page) {
  page.on("pageerror", (error) => faults.push(`${page.url()}: ${error}`));
  page.on("dialog", (dialog) => {
    faults.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("console", (message) => {
    // The browser logs failed connections and error answers by itself.
    if (message.type() === "error" && !expectsFaults && !message.text().startsWith("Failed to load resource")) {
      faults.push(`${page.url()}: ${message.text()}`);
    }
  });
  return page;
}

const page = watch(browser.pages()[0] ?? (await browser.newPage()));
const go = (path) => page.goto(origin + path, { waitUntil: "load" });
const ids = () => page.$$eval("#tasks tbody tr", (rows) => rows.map((row) => row.dataset.id));
const row = (id) => page.locator(`#tasks tr[data-id="${id}"]`);
const keys = () => page.$$eval("table.list tbody tr", (rows) => rows.map((row) => decodeURIComponent(row.dataset.id)));
const keyed = (key) => page.locator(`table.list tr[data-id="${key}"]`);
const params = () => new URL(page.url()).searchParams;
const isLive = () => page.locator("#live.is-live").waitFor();
/** Marks this document; the mark is gone after a reload. */
const mark = () => page.evaluate(() => (globalThis.marker = "not read again"));
const isMarked = async () => (await page.evaluate(() => globalThis.marker)) === "not read again";
const until = (what, check, argument) => page.waitForFunction(check, argument, { timeout: PATIENCE }).catch((error) => assert.fail(`${what}: ${error}`));

async function accessible(where) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const problems = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.any.map((a) => a.message).join("; ")}`).join("\n  ")}`);
  assert.deepEqual(problems, [], where);
}

/** Screenshots of the page, wide and narrow, light and dark; each is checked for accessibility. */
async function looks(name, schemes = ["light", "dark"], widths = [1280, 390]) {
  for (const colorScheme of schemes) {
    for (const width of widths) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 900 });
      await accessible(`${name}, ${width}, ${colorScheme}`);
      await page.screenshot({ path: join(screenshots, `${name}-${width}-${colorScheme}.png`), fullPage: true });
      const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(wider, 0, `${name} is ${wider} pixels wider than a screen of ${width}`);
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1280, height: 900 });
}

const steps = [];
const step = (name, run) => steps.push([name, run]);

step("the list shows what runs, and where to read on", async () => {
  await go("/");
  assert.equal(params().get("running"), "true");
  const shown = await ids();
  assert.ok(shown.includes("etl-long") && !shown.includes("done-0"), String(shown));
  assert.equal(await row("run-3").locator(".status").innerText(), "Running");
  assert.match(await row("run-3").locator(".c-progress .num").innerText(), /^\d+\.\d %$/);
  assert.equal(await row("run-untold").locator(".c-progress .num").innerText(), "no data");
  assert.equal(await row("run-untold").locator("progress").count(), 0);
  assert.equal(await row("run-untold").locator(".c-memory").innerText(), "—");
  assert.match(await row("run-3").locator(".c-memory").innerText(), /^\d+\.\d\d GiB$/);
  const cut = (cells) => cells.filter((cell) => cell.scrollWidth > cell.clientWidth).map((cell) => cell.textContent);
  assert.deepEqual(await page.locator("#tasks td.num").evaluateAll(cut), []);
  assert.deepEqual(await row("run-untold").locator("td").evaluateAll(cut), []);
  await isLive();
  // Chips show the counts of the gauges, once available.
  while (!(await page.locator(".chips .count").count())) await go("/");
  const counted = (chip) => page.locator(".chips a", { hasText: chip }).locator(".count").innerText();
  assert.equal(Number(await counted("Running")), shown.length);
  assert.equal(await counted("Waiting"), "3");
  assert.equal(await counted("Silent"), "1");
  await isLive();
  const before = await row("etl-long").locator(".c-running").innerText();
  await until("the running time ticks", ([id, text]) => document.querySelector(`tr[data-id="${id}"] .c-running`).innerText !== text, ["etl-long", before]);
  await looks("tasks");
});

step("filters are links and fields, and stand in the address", async () => {
  await go("/tasks?running=true");
  await page.locator("#filters > summary").click();
  await page.fill("input[name=user]", "grace");
  await page.click("form.filter button");
  await page.waitForURL(/user=grace/);
  assert.equal(params().get("running"), "true");
  assert.ok(![...params().values()].includes(""), page.url());
  const users = await page.$$eval("#tasks .c-user bdi", (cells) => cells.map((cell) => cell.textContent));
  assert.ok(users.length > 0 && users.every((user) => user === "grace"), String(users));
  await page.goBack();
  assert.equal(params().get("user"), null);
  for (const [chip, id] of [["Silent", "quiet-1"], ["Stalled", "stuck-1"]]) {
    await page.click(`.chips >> text="${chip}"`);
    await page.waitForURL(new RegExp(`${chip.toLowerCase()}=true`));
    assert.deepEqual(await ids(), [id]);
    assert.equal(await page.locator(".chips [aria-current] .label").innerText(), chip);
    assert.match(await row(id).locator(".badge").innerText(), new RegExp(`^${chip.toLowerCase()}`));
  }
  await page.click('.chips >> text="Failed"');
  assert.deepEqual(await ids(), ["failed-at-100"]);
  await page.click('.chips >> text="All"');
  await page.waitForURL(/tasks$/);
  await go("/tasks?exec_id_prefix=no-such-task");
  assert.match(await page.locator(".empty").innerText(), /No task matches/);
  await looks("empty");
});

step("columns order, and pages follow one another without repeats", async () => {
  await go("/tasks?running=true");
  await page.click("th.c-progress a");
  await page.waitForURL(/order=progress/);
  assert.equal(await page.locator("th[aria-sort]").getAttribute("aria-sort"), "descending");
  const shares = await page.$$eval("#tasks progress", (bars) => bars.map((bar) => bar.value));
  assert.deepEqual(shares, [...shares].sort((a, b) => b - a));
  await page.click("th.c-progress a");
  await page.waitForURL(/descending=false/);
  assert.equal(await page.locator("th[aria-sort]").getAttribute("aria-sort"), "ascending");
  await go("/tasks?limit=4&order=memory");
  const seen = [];
  for (;;) {
    seen.push(...(await ids()));
    const next = page.locator("a[rel=next]");
    if (!(await next.count())) break;
    const before = params().get("cursor");
    await Promise.all([page.waitForURL((url) => url.searchParams.get("cursor") !== before), next.click()]);
  }
  assert.equal(new Set(seen).size, seen.length);
  await go("/tasks");
  assert.deepEqual([...seen].sort(), (await ids()).sort());
});

step("a task tells its whole story", async () => {
  await go("/tasks/etl-long");
  assert.equal(await page.locator("h1").innerText(), "etl-long");
  assert.ok((await page.locator("#plot .wide svg polyline").count()) >= 1);
  assert.match(await page.locator(".facts").innerText(), /^running time \d+ m \d\d s, since /);
  assert.match(await page.locator("[data-part=jobs]").innerText(), /stage-1/);
  assert.match(await page.locator("[data-part=applications]").innerText(), /application_1/);
  assert.match(await page.locator("[data-part=metrics]").innerText(), /shuffle\.bytes/);
  assert.ok((await page.locator("[data-part=reports] tbody tr").count()) > 5);
  assert.match(await page.locator(".known").innerText(), /\d+@\d+/);
  await page.locator("#plot").focus();
  await page.keyboard.press("Home");
  const first = await page.locator("#reading").innerText();
  await page.keyboard.press("ArrowRight");
  const second = await page.locator("#reading").innerText();
  assert.match(first, /UTC: progress .*, memory .*, cores/);
  assert.notEqual(first, second);
  assert.equal(await page.locator("#plot .wide .reading").count(), 1);
  await page.locator("#plot .wide svg").hover({ position: { x: 600, y: 40 } });
  assert.notEqual(await page.locator("#reading").innerText(), second);
  await looks("task");
  await page.emulateMedia({ media: "print" });
  await page.screenshot({ path: join(screenshots, "task-print.png"), fullPage: true });
  await page.emulateMedia({ media: "screen" });
});

step("jobs are rolled up, and lead to their tasks", async () => {
  await go("/jobs");
  await isLive();
  assert.equal(await page.locator("#views [aria-current]").innerText(), "Jobs");
  const job = keyed("nightly-1");
  assert.equal(await job.locator(".c-tasks").innerText(), "6");
  assert.match(await job.locator(".c-statuses").innerText(), /Running/);
  assert.match(await job.locator(".c-progress .num").innerText(), /^\d+\.\d %$/);
  assert.match(await job.locator(".c-memory").innerText(), /^\d+\.\d\d GiB$/);
  assert.ok((await keys()).includes("job-of-done-0"));
  const cut = (cells) => cells.filter((cell) => cell.scrollWidth > cell.clientWidth).map((cell) => cell.textContent);
  assert.deepEqual(await page.locator("#jobs td.num").evaluateAll(cut), []);
  const before = await job.locator(".c-running").innerText();
  await until("the running time ticks", (text) => document.querySelector('tr[data-id="nightly-1"] .c-running').innerText !== text, before);
  await looks("jobs");
  await page.click('.chips >> text="Running"');
  await page.waitForURL(/jobs\?running=true/);
  assert.ok(!(await keys()).includes("job-of-done-0"));
  await page.locator("#filters > summary").click();
  await page.fill("input[name=user]", "grace");
  await page.click("form.filter button");
  await page.waitForURL(/user=grace/);
  assert.equal(params().get("running"), "true");
  assert.equal(await keyed("nightly-1").locator(".c-tasks").innerText(), "2");
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.waitForURL(/\/tasks\?job_id=.*user=grace/);
  assert.equal((await ids()).length, 2);
  await go("/jobs?limit=4");
  const seen = [];
  for (;;) {
    seen.push(...(await keys()));
    const next = page.locator("a[rel=next]");
    if (!(await next.count())) break;
    const last = params().get("cursor");
    await Promise.all([page.waitForURL((url) => url.searchParams.get("cursor") !== last), next.click()]);
  }
  assert.equal(new Set(seen).size, seen.length);
  await go("/jobs");
  assert.deepEqual([...seen].sort(), (await keys()).sort());
  await go("/jobs?job_id=no-such-job");
  assert.match(await page.locator(".empty").innerText(), /No job matches/);
});

step("jobs change where they stand, and what moves them waits", async () => {
  await go("/jobs?limit=5");
  await isLive();
  await mark();
  const before = await keys();
  await keyed("job-of-run-untold").locator("a").focus();
  await ask("end run-untold");
  await ask("begin of-new-job");
  await until("the job ends", () => document.querySelector('tr[data-id="job-of-run-untold"] .c-statuses').textContent.includes("1 Succeed"));
  assert.equal(await page.evaluate(() => document.activeElement.closest("tr")?.dataset.id), "job-of-run-untold");
  await page.locator("#show:not([hidden])").waitFor();
  assert.match(await page.locator("#show").innerText(), /^1 new, 1 no longer listed while you read: show$/);
  assert.deepEqual(await keys(), before);
  await page.keyboard.press("s");
  await keyed("job-of-of-new-job").waitFor();
  assert.equal((await keys())[0], "job-of-of-new-job");
  assert.equal(await page.locator("#show").isVisible(), false);
  assert.ok(await isMarked());
});

step("a job that ends says so, in a list of those that run, too", async () => {
  await ask("begin short");
  await go("/jobs?running=true");
  await isLive();
  assert.equal(await keyed("job-of-short").locator(".c-live").innerText(), "1");
  const before = await keys();
  await ask("end short");
  await until("the job ends", () => document.querySelector('tr[data-id="job-of-short"] .c-live').textContent === "0");
  assert.match(await keyed("job-of-short").locator(".c-statuses").innerText(), /^1 Succeed$/);
  assert.match(await page.locator("#show").innerText(), /1 no longer listed/);
  assert.deepEqual(await keys(), before);
});

step("engines tell what they run, where that differs, and how busy they were", async () => {
  await go("/engines");
  await isLive();
  const name = (i) => `node-${i}.example.internal%3A10000 ${["spark", "hive"][i % 2]}`;
  const [differs, same] = [keyed(name(3)), keyed(name(5))];
  assert.equal(await differs.locator(".c-live").innerText(), "1");
  assert.match(await differs.locator(".c-says").innerText(), /differs\s*2$/);
  assert.equal(await differs.locator(".c-says .shape").count(), 1);
  assert.equal(await same.locator(".badge").count(), 0);
  assert.match(await differs.locator(".c-progress .num").innerText(), /^\d+\.\d %$/);
  assert.match(await page.locator(".facts-line").innerText(), /with reports from .* UTC to .* UTC/);
  await looks("engines");
  await page.click('.chips >> text="Last hour"');
  await page.waitForURL(/from=-1h/);
  assert.equal(await page.locator(".chips [aria-current]").innerText(), "Last hour");
  await page.click('.chips >> text="Last 24 hours"');
  await page.waitForURL(/engines$/);
  await page.locator("#filters > summary").click();
  await page.fill("input[name=engine_type]", "hive");
  await page.click("form.filter button");
  await page.waitForURL(/engine_type=hive/);
  assert.ok((await keys()).every((key) => key.endsWith(" hive")));
  await keyed(name(3)).locator("a").first().click();
  await page.waitForURL(/\/tasks\?engine_instance=/);
  assert.deepEqual(await ids(), ["run-3"]);
  await go("/engines?limit=5&from=-6h");
  const first = await keys();
  await page.locator("a[rel=next]").click();
  await page.waitForURL(/cursor=/);
  assert.ok(!(await keys()).some((key) => first.includes(key)));
  await go("/engines?from=2001-01-01T00:00:00Z&to=2001-01-02T00:00:00Z");
  assert.match(await page.locator(".empty").innerText(), /No engine matches/);
});

step("usage is added up, drawn, and exact", async () => {
  await go("/usage");
  await isLive();
  assert.equal(await page.locator("#usage .c-place").nth(1).innerText(), "1");
  assert.ok((await page.locator("#usage tbody tr").count()) >= 7);
  const of = (key) => keyed(`k${key}`).locator("data").first();
  assert.match(await of("alan").innerText(), /^\d+\.\d\d$/);
  assert.match(await of("alan").getAttribute("title"), /^\d+(\.\d+)? core-seconds$/);
  assert.equal(Number((Number(await of("alan").getAttribute("value")) / 3600).toFixed(2)), Number(await of("alan").innerText()));
  assert.match(await page.locator(".total").innerText(), /^Total\s+[\d.]+ core hours/);
  assert.ok((await page.locator(".bars .wide svg rect").count()) >= 21);
  await looks("usage", ["dark"]);
  await page.click('.chips >> text="Hour"');
  await page.waitForURL(/every=hour/);
  assert.ok((await page.locator(".legend li").count()) === 6, await page.locator(".legend").innerText());
  assert.match(await page.locator(".legend").innerText(), /all others/);
  assert.match(await page.locator("#usage .c-from").nth(1).innerText(), / UTC$/);
  await looks("usage-hours");
  await page.click('.chips >> text="Engine type"');
  await page.waitForURL(/by=engine_type/);
  assert.equal(params().get("every"), "hour");
  await go("/usage?from=-6h");
  assert.equal(await page.locator(".chips [aria-current]").first().innerText(), "Last 6 hours");
  await keyed("kalan").locator("a").click();
  await page.waitForURL(/\/tasks\?user=alan/);
  assert.deepEqual(await ids(), ["past-alan"]);
  await go("/usage?user=nobody");
  assert.match(await page.locator(".empty").innerText(), /No usage in this period/);
  // The field's times are in UTC.
  await page.locator("#search").fill("ada");
  await page.fill("input[name=from]", "2026-01-01T00:00:01");
  await page.fill("input[name=to]", "2026-01-02T00:00:01");
  await page.click("form.filter button");
  await page.waitForURL(/from=2026-01-01T00:00:01Z/);
  assert.equal(params().get("to"), "2026-01-02T00:00:01Z");
});

step("every view is one link away, at the same time", async () => {
  const at = `${new Date(Date.now() - 30 * 60000).toISOString().slice(0, 19)}Z`;
  await go(`/tasks?at=${at}`);
  await page.keyboard.press("2");
  await page.waitForURL(/\/jobs\?at=/);
  assert.match(await page.locator(".then").innerText(), /As of .* UTC/);
  const jobs = await keys();
  assert.ok(jobs.includes("job-of-etl-long") && !jobs.includes("nightly-0"), String(jobs));
  assert.equal(await page.locator("body[data-at]").count(), 1);
  await looks("jobs-as-of", ["dark"], [390]);
  await page.keyboard.press("4");
  await page.waitForURL(/\/usage\?at=/);
  assert.match(await page.locator(".then").innerText(), /As of/);
  const until = await page.locator(".facts-line time").nth(1).getAttribute("datetime");
  assert.equal(Date.parse(until), Date.parse(at));
  await page.keyboard.press("3");
  await page.waitForURL(/\/engines\?at=/);
  assert.match(await page.locator(".notice").innerText(), /This view shows the present, not .* UTC/);
  assert.equal(await page.locator("html.past").count(), 0);
  await looks("engines-now", ["light"], [1280]);
  await page.keyboard.press("1");
  await page.waitForURL(/\/tasks\?.*at=/);
  await page.keyboard.press("3");
  await page.waitForURL(/\/engines\?at=/);
  await page.keyboard.press("n");
  await page.waitForURL(/\/engines$/);
});

step("a view that is read again says that the server is away, and comes back by itself", async () => {
  await go("/engines");
  await isLive();
  await mark();
  expectsFaults = true;
  await ask("stop");
  await page.keyboard.press("s");
  await page.locator("#trouble:not([hidden])").waitFor();
  assert.match(await page.locator("#trouble").innerText(), /^Not live: .*Showing data of .* UTC/);
  await ask("start");
  await isLive();
  assert.equal(await page.locator("#trouble").isVisible(), false);
  expectsFaults = false;
  assert.ok(await isMarked());
});

step("without scripts everything is there, too", async () => {
  const plain = await browser.browser()?.newContext({ javaScriptEnabled: false });
  const own = plain ?? (await (await chromium.launch({ executablePath, args: FLAGS })).newContext({ javaScriptEnabled: false }));
  const bare = watch(await own.newPage());
  await bare.goto(`${origin}/`);
  assert.ok((await bare.locator("#tasks tbody tr").count()) > 5);
  assert.equal(await bare.locator("#zone").isVisible(), false);
  await bare.screenshot({ path: join(screenshots, "tasks-without-scripts.png") });
  for (const view of ["jobs", "engines", "usage"]) {
    await bare.locator("#views").getByText(view, { exact: false }).click();
    assert.ok((await bare.locator(`#${view} tbody tr`).count()) > 5, view);
  }
  assert.ok(await bare.locator(".bars svg").first().isVisible());
  await bare.goto(`${origin}/`);
  await bare.locator('#tasks tr[data-id="etl-long"] a').click();
  assert.ok(await bare.locator("#plot svg").first().isVisible());
  await bare.locator(".asof summary").click();
  await bare.locator("input[name=at]").fill(`${new Date(Date.now() - 600000).toISOString().slice(0, 16)}:30`);
  await bare.locator(".asof button").click();
  assert.match(await bare.locator(".then").innerText(), /As of .* UTC/);
  await own.close();
});

step("rows change where they stand, and what moves them waits", async () => {
  await go("/tasks?running=true");
  await isLive();
  await mark();
  await row("run-3").locator("a").focus();
  const before = await ids();
  await ask("advance run-3");
  await until("the progress of run-3 changes", () => document.querySelector('tr[data-id="run-3"] .c-progress .num').textContent === "97.5 %");
  assert.equal(await page.evaluate(() => document.activeElement.closest("tr")?.dataset.id), "run-3");
  await ask("begin new-1");
  await page.locator("#show:not([hidden])").waitFor();
  assert.match(await page.locator("#show").innerText(), /1 new while you read: show/);
  await ask("end run-4");
  await until("run-4 ends", () => document.querySelector('tr[data-id="run-4"]').dataset.status === "Succeed");
  assert.match(await page.locator("#show").innerText(), /1 new, 1 ended/);
  assert.match(await page.locator("#announcement").innerText(), /run-4 ended/);
  assert.deepEqual(await ids(), before);
  await page.screenshot({ path: join(screenshots, "tasks-changed.png") });
  await page.keyboard.press("s");
  await row("new-1").waitFor();
  const after = await ids();
  assert.ok(!after.includes("run-4") && after.includes("run-3"), String(after));
  assert.equal(await page.locator("#show").isVisible(), false);
  assert.ok(await isMarked());
});

step("an empty list asks for the page only if a task may belong into it, and then shows it", async () => {
  await go("/tasks?exec_id_prefix=run-8&status=Failed");
  await isLive();
  await mark();
  const asked = [];
  const note = (request) => request.resourceType() === "xhr" && asked.push(request.url());
  page.on("request", note);
  await ask("advance run-8");
  await until("the change arrives", () => document.querySelector("#live .words").textContent.startsWith("live, change"));
  await page.waitForTimeout(1000);
  assert.deepEqual(asked, []);
  page.off("request", note);
  assert.match(await page.locator("#list .empty").innerText(), /No task matches/);
  await go("/tasks?exec_id_prefix=first-");
  await isLive();
  await mark();
  await ask("begin first-1");
  // Polling the marks, every 20 s, would find it later.
  await row("first-1").waitFor({ timeout: 10000 });
  assert.equal(await page.locator(".empty").count(), 0);
  assert.match(await page.locator(".foot").innerText(), /^1 task\./);
  assert.ok(await isMarked());
});

step("an update takes the browser less than 50 ms", async () => {
  await go("/tasks?running=true");
  await isLive();
  const middle = await page.evaluate(async () => {
    const { writeRow } = await import(document.querySelector("script[type=module]").src.replace("page.js", "rows.js"));
    const took = [];
    for (let round = 0; round < 20; round += 1) {
      const began = performance.now();
      // Status, progress, running time and report differ from the round before.
      const status = round % 2 ? "Running" : "Failed";
      const reportedAt = new Date().toISOString();
      for (const tr of document.querySelectorAll("#tasks tbody tr")) {
        writeRow(tr, { exec_id: tr.dataset.id, status, progress: round / 20, started_at: "2026-11-25T14:05:00.000000Z", ended_at: null, reported_at: reportedAt });
      }
      document.body.getBoundingClientRect();
      took.push(performance.now() - began);
      await new Promise(requestAnimationFrame);
    }
    return took.sort((a, b) => a - b)[took.length >> 1]; // other programs use the machine, too
  });
  console.log(`an update of all rows: ${middle.toFixed(1)} ms`);
  assert.ok(middle < 50, `${middle} ms`);
});

step("a task's page follows its task", async () => {
  await go("/tasks/run-5");
  await isLive();
  await mark();
  await page.locator("#plot").focus();
  await ask("advance run-5");
  await until("the progress of run-5 changes", () => document.querySelector(".now .progress .num").textContent === "97.5 %");
  await ask("end run-5");
  await until("run-5 ends", () => document.querySelector(".now .status").textContent === "Succeed");
  assert.ok(await isMarked());
  assert.equal(await page.evaluate(() => document.activeElement.id), "plot");
  assert.match(await page.locator(".facts").innerText(), /^running time .*, from .* to /);
  await page.keyboard.press("End");
  assert.match(await page.locator("#reading").innerText(), /Succeed/);
});

step("what changes while a task's page is read, or cannot be read, is shown as well", async () => {
  const readings = (id, handle) => page.route((url) => url.pathname === `/tasks/${id}`, handle, { times: 1 });
  const isOver = () => document.querySelector(".now .status").textContent === "Succeed";
  await go("/tasks/run-10");
  await isLive();
  let release;
  const isReading = new Promise((reading) => {
    readings("run-10", async (route) => {
      const response = await route.fetch();
      const released = new Promise((resolve) => (release = resolve));
      reading();
      await released;
      await route.fulfill({ response });
    });
  });
  await ask("advance run-10");
  await isReading;
  await ask("end run-10");
  await page.waitForTimeout(3000); // by then the change is here
  release();
  await until("run-10 ends", isOver);
  await ask("begin new-3");
  await go("/tasks/new-3");
  await isLive();
  let failed = 0;
  await readings("new-3", (route) => {
    failed += 1;
    return route.abort();
  });
  await ask("end new-3");
  await until("new-3 ends", isOver);
  assert.equal(failed, 1);
});

step("a hidden tab asks nothing", async () => {
  await go("/tasks?running=true");
  await isLive();
  const hide = (hidden) =>
    page.evaluate((is) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => is });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  await hide(true);
  const asked = [];
  const note = (request) => asked.push(request.url());
  page.on("request", note);
  await ask("advance run-6");
  assert.deepEqual(asked, []);
  assert.notEqual(await row("run-6").locator(".c-progress .num").innerText(), "97.5 %");
  page.off("request", note);
  await hide(false);
  await until("run-6 is caught up with", () => document.querySelector('tr[data-id="run-6"] .c-progress .num').textContent === "97.5 %");
});

step("it says that the server is away, and comes back by itself", async () => {
  await go("/tasks?running=true");
  await isLive();
  await mark();
  expectsFaults = true;
  await ask("stop");
  await page.locator("#trouble:not([hidden])").waitFor();
  assert.match(await page.locator("#trouble").innerText(), /^Not live: .*Showing data of .* UTC/);
  assert.equal(await page.locator("html.old").count(), 1);
  await page.screenshot({ path: join(screenshots, "tasks-disconnected.png") });
  await ask("start");
  await isLive();
  assert.equal(await page.locator("#trouble").isVisible(), false);
  expectsFaults = false;
  await ask("advance run-7");
  await until("run-7 is followed again", () => document.querySelector('tr[data-id="run-7"] .c-progress .num').textContent === "97.5 %");
  assert.ok(await isMarked());
});

step("what happened while the server was away is shown once it is back", async () => {
  const away = async (view, ...events) => {
    await go(view);
    await isLive();
    await mark();
    expectsFaults = true;
    await ask("stop");
    await page.locator("#trouble:not([hidden])").waitFor();
    for (const event of events) await ask(event);
    await ask("start");
    await isLive();
    assert.equal(await page.locator("#trouble").isVisible(), false);
    expectsFaults = false;
  };
  await away("/tasks?running=true", "end run-8", "begin new-2");
  const shown = await ids();
  assert.ok(!shown.includes("run-8") && shown.includes("new-2"), String(shown));
  assert.equal(await page.locator("#show").isVisible(), false);
  // The same connection continues.
  await ask("advance run-9");
  await until("run-9 is followed", () => document.querySelector('tr[data-id="run-9"] .c-progress .num').textContent === "97.5 %");
  assert.ok(await isMarked());
  await away("/tasks/run-9", "end run-9");
  assert.equal(await page.locator(".now .status").innerText(), "Succeed");
  assert.ok(await isMarked());
});

step("the whole page goes back in time, and says so", async () => {
  await go("/tasks?running=true");
  await page.locator(".asof summary").click();
  // The field omits zero seconds.
  const then = `${new Date(Date.now() - 15 * 60000).toISOString().slice(0, 16)}:30`;
  await page.fill("input[name=at]", then);
  await page.click(".asof button");
  await page.waitForURL(/at=/);
  assert.equal(params().get("at"), `${then}Z`);
  assert.equal(params().get("running"), "true");
  assert.equal(await page.locator("html.past").count(), 1);
  assert.match(await page.locator(".then").innerText(), /As of .*the state that engines had reported by then/);
  assert.match(await page.title(), /as of/);
  const shown = await ids();
  assert.ok(shown.includes("etl-long") && !shown.includes("run-3"), String(shown));
  await looks("as-of");
  await row("etl-long").locator("a").click();
  await page.waitForURL(/tasks\/etl-long\?at=/);
  assert.match(await page.locator(".then").innerText(), /As of/);
  await page.locator("#back").click();
  await page.waitForURL(/tasks\?/);
  const slider = page.locator("#day");
  await slider.focus();
  await page.keyboard.press("ArrowLeft");
  await page.waitForURL((url) => url.searchParams.get("at") !== `${then}Z`);
  await page.keyboard.press("n");
  await page.waitForURL((url) => !url.searchParams.has("at"));
  assert.equal(await page.locator("html.past").count(), 0);
});

step("the keyboard is enough", async () => {
  await go("/tasks?running=true");
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.keyboard.type("run-j?k");
  assert.equal(await page.locator("#help").isVisible(), false);
  await page.keyboard.press("Control+a");
  await page.keyboard.type("run-");
  await page.keyboard.press("Enter");
  await page.waitForURL(/exec_id_prefix=run-/);
  const all = await ids();
  assert.ok(all.every((id) => id.startsWith("run-")) && all.length > 2);
  const focused = () => page.evaluate(() => document.activeElement.closest("tr")?.dataset.id);
  await page.keyboard.press("j");
  assert.equal(await focused(), all[0]);
  await page.keyboard.press("j");
  assert.equal(await focused(), all[1]);
  await page.keyboard.press("k");
  assert.equal(await focused(), all[0]);
  await page.keyboard.press("Enter");
  await page.waitForURL(new RegExp(`/tasks/${all[0]}`));
  await page.keyboard.press("?");
  assert.ok(await page.locator("#help").isVisible());
  await accessible("the help");
  await page.screenshot({ path: join(screenshots, "help.png") });
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#help").isVisible(), false);
  const time = page.locator(".known time");
  const utc = await time.innerText();
  assert.match(utc, / UTC$/);
  await page.keyboard.press("u");
  assert.match(await time.innerText(), / UTC\+09:00$/);
  assert.equal(await page.locator("#zone").innerText(), "UTC+09:00");
  assert.equal(await time.getAttribute("title"), utc);
  await page.keyboard.press("u");
  assert.equal(await time.innerText(), utc);
  await page.keyboard.press("Escape");
  await page.waitForURL(/\/tasks\?/);
});

step("text of reports stays text", async () => {
  await go("/tasks?user=&exec_id_prefix=hostile");
  const hostile = await page.$$eval("#tasks .c-task a", (links) => links.map((link) => link.getAttribute("href")));
  assert.ok(hostile.length >= 6, String(hostile));
  const rolledUp = ["/jobs", "/engines", ...["user", "queue", "engine_type", "job", "application"].map((by) => `/usage?every=hour&by=${by}`)];
  for (const path of [page.url().slice(origin.length), ...hostile, ...rolledUp]) {
    await go(path);
    const found = await page.evaluate(() => ({
      hacked: globalThis.hacked,
      elements: document.querySelectorAll("main img, main script, main iframe, main b, main style, main base").length,
      handlers: [...document.querySelectorAll("*")].filter((node) => [...node.attributes].some(({ name }) => name.startsWith("on"))).length,
      hidden: /[\u202a-\u202e\u2066-\u2069\u200b]/.test(document.body.innerText),
    }));
    assert.deepEqual(found, { hacked: undefined, elements: 0, handlers: 0, hidden: false }, path);
  }
  await page.screenshot({ path: join(screenshots, "hostile.png"), fullPage: true });
  await go("/tasks?exec_id_prefix=hostile");
  await isLive();
  await ask("begin hostile-new");
  await page.locator("#show:not([hidden])").waitFor();
  await page.keyboard.press("s");
  await until("the new one is listed", () => [...document.querySelectorAll("#tasks tbody tr")].some((tr) => tr.dataset.id.startsWith("hostile-new")));
  assert.equal(await page.evaluate(() => globalThis.hacked), undefined);
});

step("errors say what was wrong", async () => {
  assert.equal((await go("/tasks?limit=0")).status(), 400);
  assert.match(await page.locator(".empty").innerText(), /limit/);
  assert.equal((await go("/tasks/no-such-task")).status(), 404);
  assert.match(await page.locator(".empty").innerText(), /no-such-task/);
  await looks("error");
  const busy = async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, body: (await response.text()).replace('data-view="error"', 'data-view="retry"') });
  };
  // Only temporary errors are retried. The test advances the clock instead of waiting.
  const timed = watch(await browser.newPage());
  await timed.clock.install();
  await timed.route((url) => url.pathname === "/tasks/no-such-task", busy, { times: 1 });
  for (const isRetried of [true, false]) {
    await timed.goto(`${origin}/tasks/no-such-task`);
    await timed.evaluate(() => (globalThis.marker = "not read again"));
    const again = isRetried ? timed.waitForEvent("load") : null;
    await timed.clock.fastForward(6000);
    await again;
    assert.equal(await timed.getAttribute("body", "data-view"), "error");
    assert.equal(await timed.evaluate(() => globalThis.marker === undefined), isRetried);
  }
  await timed.close();
  assert.equal((await go("/tasks/%ff")).status(), 400);
  assert.match(await page.locator(".empty h1").innerText(), /Invalid request/);
  const posted = await page.evaluate(() => fetch("/tasks", { method: "POST", headers: { accept: "text/html" } }).then(async (answer) => [answer.status, await answer.text()]));
  assert.equal(posted[0], 405);
  assert.match(posted[1], /<h1>This page is read-only/);
  assert.equal((await go("/nothing/here")).status(), 404);
  assert.match(await page.locator(".empty").innerText(), /\/nothing\/here/);
  assert.equal(await page.locator(".empty a").getAttribute("href"), "/tasks?running=true&order=started");
});

step("who is asked for a token arrives at the address asked for, and can log out", async () => {
  const asked = `${guarded}/tasks?order=progress&user=ada`;
  await page.goto(asked);
  assert.equal(new URL(page.url()).pathname, "/login");
  await looks("login");
  await page.fill("input[name=token]", "of-nobody");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").waitFor();
  await page.fill("input[name=token]", "of-operator");
  await Promise.all([page.waitForURL(asked), page.keyboard.press("Enter")]);
  assert.ok((await ids()).length > 0);
  await looks("tasks-logged-in", ["light"], [1280, 390]);
  await page.getByRole("button", { name: "Log out" }).click();
  await page.waitForURL(`${guarded}/login`);
  await page.goto(asked);
  assert.equal(new URL(page.url()).pathname, "/login");
  // A viewer without tasks learns why there are none.
  await page.fill("input[name=token]", "of-bob");
  await page.keyboard.press("Enter");
  await page.waitForURL((url) => url.searchParams.get("user") === "ada");
  await page.goto(`${guarded}/tasks`);
  assert.match(await page.locator(".empty").innerText(), /No task is visible to you/);
  await looks("tasks-of-nobody", ["light"], [1280, 390]);
});

const only = process.env.PAGE_ONLY;
try {
  for (const [name, run] of steps) {
    if (only && !new RegExp(only).test(name)) continue;
    console.log(`· ${name}`);
    try {
      await run();
      assert.deepEqual(faults, []);
    } catch (error) {
      await page.screenshot({ path: join(screenshots, "failed.png"), fullPage: true }).catch(() => {});
      throw new Error(`${name}\n${error.stack}\nat ${page.url()}; see ${join(screenshots, "failed.png")}`);
    }
  }
  console.log("all passed");
} finally {
  await browser.close();
  rmSync(userDataDir, { recursive: true, force: true, maxRetries: 5 });
}
process.exit(0);
