// Drives two phones in one headless browser, and says what they met as one line of JSON.
// Usage: node drive.mjs CHROMIUM PROFILE-DIRECTORY SETTINGS; SETTINGS is JSON:
//   {"host": address for the page, "spki": hash of the servers' key, "alice": {library, server, uri, password}, "bob": ...}
import { createServer } from "node:http";
import { buildSync } from "esbuild";
import puppeteer from "puppeteer-core";

const [chromium, profile, settings] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4])];

const bundle = buildSync({
  entryPoints: [new URL("phones.js", import.meta.url).pathname],
  bundle: true,
  write: false,
  format: "iife",
  logLevel: "error",
}).outputFiles[0].text;

// Loopback over http is a secure context, in which a page may use WebRTC.
const server = createServer((request, response) => {
  const script = request.url === "/phones.js";
  response.setHeader("Content-Type", script ? "text/javascript; charset=utf-8" : "text/html; charset=utf-8");
  response.end(script ? bundle : "<!doctype html><title>phone</title><script src=/phones.js></script>");
});
await new Promise((done) => server.listen(0, settings.host, done));

const browser = await puppeteer.launch({
  executablePath: chromium,
  userDataDir: profile,
  headless: "shell",
  args: [
    "--no-sandbox",
    `--ignore-certificate-errors-spki-list=${settings.spki}`,
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--allow-loopback-in-peer-connection",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
  ],
});

async function open(name) {
  const page = await browser.newPage();
  page.on("pageerror", (error) => process.stderr.write(`${name}: ${error}\n`));
  page.on("console", (line) => process.stderr.write(`${name}: ${line.text()}\n`));
  await page.goto(`http://${settings.host}:${server.address().port}/`);
  const { library, ...rest } = settings[name];
  await page.evaluate((library, rest) => window.makePhone(library, rest), library, rest);
  return {
    act: (method, ...given) =>
      page.evaluate(async (method, given) => void (await window.phone[method](...given)), method, given),
    until: (event) => page.evaluate((event) => window.phone.events.until(event), event),
  };
}

const met = {};

async function message(name, from, to, uri) {
  await from.act("message", uri, `${name} says grüß`);
  met[`message to ${name}`] = [await to.until("message"), await from.until("sent")];
}

async function talk(name, caller, callee, uri, leaver, left) {
  await caller.act("call", uri);
  await callee.until("ringing");
  await caller.until("ringing");
  await callee.act("answer");
  await Promise.all([caller.until("talking"), callee.until("talking")]);
  await leaver.act("hangUp");
  await Promise.all([leaver.until("ended"), left.until("ended")]);
  met[`call to ${name}`] = "ended";
}

let failed = 0;
try {
  const [alice, bob] = await Promise.all([open("alice"), open("bob")]);
  await Promise.all([alice, bob].map((phone) => phone.act("start")));
  await Promise.all([alice, bob].map((phone) => phone.until("registered")));
  met.registered = true;
  await message("bob", alice, bob, settings.bob.uri);
  await message("alice", bob, alice, settings.alice.uri);
  await talk("bob", alice, bob, settings.bob.uri, alice, bob);
  await talk("alice", bob, alice, settings.alice.uri, alice, bob);
  await Promise.all([alice, bob].map((phone) => phone.act("stop")));
  await Promise.all([alice, bob].map((phone) => phone.until("unregistered")));
  met.unregistered = true;
} catch (error) {
  met.error = String(error);
  failed = 1;
} finally {
  await browser.close();
  server.close();
}
process.stdout.write(`${JSON.stringify(met)}\n`);
process.exit(failed);
