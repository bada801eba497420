// JupyterLab in a browser with a terminal open, and nobody there for an hour.
//
// By default the hour takes a minute: every time limit that lies on the way of a silent stream, or of
// the session that it was opened with, is a sixtieth of what it is by default, or still shorter. So
// each has as many occasions to strike in that minute as in an hour. JupyterLab's own pings are left
// as they are, one in 30 seconds; so the stream is silent for longer, measured by the limits, than it
// ever is in an hour. The limits of what is under way (a handshake, a head) are left as they are too:
// they do not count while nothing happens. Falling asleep is turned off: after an hour without a person
// a workspace would, which is what it is for (sleep.test.js).
//
// What a minute cannot show is what only real time does, such as a counter that grows. For that,
// DORMOUSE_E2E_QUIET_MINUTES=60 waits for as long with the real limits.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { after, test } from 'node:test';

import { fillSignIn, launchBrowser, needsBrowser, withPage } from '../support/browser.js';
import { until } from '../support/deadline.js';
import { ownInstance, temporaryFolder } from '../support/instance.js';

const real = process.env.DORMOUSE_E2E_QUIET_MINUTES;
const minutes = Number(real ?? 1);
const WITHIN = 90_000;

/** A sixtieth of 10 minutes, 75 s and 2 minutes; and for what is 3 hours, much less. */
const sixtieth = `
[authserver]
access_token_lifetime = "10s"
[proxy.limits]
keep_alive = "1250ms"
body_stall = "2s"
stall_timeout = "10s"
`;

function flags() {
  const all = ['--idle-after', '12h'];
  if (real) return all;
  const file = path.join(temporaryFolder('quiet'), 'settings.toml');
  writeFileSync(file, sixtieth);
  return [...all, '--settings', file];
}

let instance;
let browser;
let needsLab = needsBrowser;
if (!needsBrowser.skip) {
  instance = await ownInstance('quiet-terminal', flags());
  if (instance.workload('lab')) {
    browser = await launchBrowser(instance);
    after(() => browser.close());
  } else {
    needsLab = { skip: 'JupyterLab needs Python' };
  }
}

const name = real ? `a terminal is open and quiet for ${minutes} minutes` : 'a terminal is open and quiet for an hour, at sixty times the speed';

test(name, { ...needsLab, timeout: minutes * 60_000 + 240_000 }, async (t) => {
  await withPage(browser, 'quiet-terminal', {}, async (page, context) => {
    const sockets = [];
    page.on('websocket', (socket) => {
      if (!socket.url().includes('/terminals/websocket/')) return;
      const kept = { socket, shown: '' };
      sockets.push(kept);
      socket.on('framereceived', ({ payload }) => {
        const [what, text] = JSON.parse(payload.toString());
        if (what === 'stdout') kept.shown += text;
      });
    });
    await page.goto(instance.url('lab', '/lab?reset'));
    await fillSignIn(page, instance.user('alice'));
    await page.locator('.jp-LauncherCard[title="Start a new terminal session"]').click({ timeout: WITHIN });
    const screen = page.locator('.jp-Terminal .xterm');
    await screen.waitFor({ timeout: WITHIN });
    const says = async (command, answer) => {
      await screen.click();
      await page.keyboard.type(`${command}\n`);
      await until(`the terminal to show ${answer}`, () => sockets.at(-1)?.shown.includes(answer), { within: WITHIN });
    };
    await until('the prompt', () => sockets.at(-1)?.shown !== '' && sockets.length > 0, { within: WITHIN });
    await says('echo before-$((6*7))', 'before-42');

    const session = async () => {
      const all = await context.cookies(instance.url('lab'));
      return all.find((one) => one.name === '__Host-dormouse')?.value;
    };
    const earlier = await session();
    const shown = sockets[0].shown;
    await pause(minutes * 60_000);
    assert.equal(sockets[0].shown, shown, 'it was quiet');
    assert.equal(sockets.length, 1, 'one socket, from the beginning to the end');
    assert.equal(sockets[0].socket.isClosed(), false);
    // The session went on meanwhile, or goes on now, with other tokens than the one the socket came with.
    const who = await page.evaluate(() => fetch('/.dormouse/whoami').then((answer) => answer.json()));
    assert.equal(who.user, 'alice');
    if (!real || minutes > 10) assert.notEqual(await session(), earlier, 'the access token was renewed');
    t.diagnostic(`the access token was ${(await session()) === earlier ? 'the same' : 'renewed'}`);
    await says('echo behind-$((6*7))', 'behind-42');
    assert.equal(sockets.length, 1);
  });
});
