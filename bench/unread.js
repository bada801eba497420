// What the SSH gateway's memory is while nobody reads what workspaces say: many forwarded connections into one workspace,
// each of which a server there fills without an end. `dormouse dev` runs the gateway with all else in one process, so what
// counts is the difference. Beside it: how long a neighbour waits for a new session of another connection.

import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';

const usage = `usage: node bench/unread.js [--target DIR] [--connections N] [--channels N]

  --target DIR       where the binaries are (default: target/release); build them with
                     cargo build --release -p dormouse-cli -p dormouse-load
  --connections N    SSH connections (default: 80)
  --channels N       channels of each (default: 125; the gateway allows 128)

example: node bench/unread.js --target target/debug --connections 8`;

const { values } = parseArgs({
  options: {
    target: { type: 'string', default: 'target/release' },
    connections: { type: 'string', default: '80' },
    channels: { type: 'string', default: '125' },
    help: { type: 'boolean', default: false },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const [connections, channels] = [Number(values.connections), Number(values.channels)];
const [dormouse, load] = ['dormouse', 'dormouse-load'].map((name) => path.resolve(values.target, name));
for (const program of [dormouse, load]) if (!existsSync(program)) throw new Error(`${program} is not there\n\n${usage}`);

const run = promisify(execFile);
const folder = mkdtempSync(path.join(os.tmpdir(), 'unread-'));
const file = (name) => path.join(folder, name);
const socket = file('flood');
const children = [];

function start(program, args, options) {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], ...options });
  children.push(child);
  const line = new Promise((resolve, reject) => {
    child.stdout?.once('data', (data) => resolve(String(data)));
    child.once('exit', (code) => reject(new Error(`${path.basename(program)} ${args[0]} has ended with ${code}`)));
  });
  line.catch(() => {});
  return { child, line };
}

const mebibytes = (pid) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;

/** Waits until a figure has stayed for so many looks. */
async function settled(look) {
  for (let [last, same] = [look(), 0]; ; ) {
    await sleep(500);
    const now = look();
    same = Math.abs(now - last) < 1 ? same + 1 : 0;
    last = now;
    if (same >= 10) return now;
  }
}

try {
  const args = ['dev', '--data-dir', file('data'), '--https-port', '18443', '--ssh-port', '12222', '--ready-file', file('ready')];
  const log = openSync(file('log'), 'a');
  const dev = start(dormouse, args, { stdio: ['ignore', log, log] });
  while (!existsSync(file('ready'))) {
    if (dev.child.exitCode !== null) throw new Error(`dormouse dev has ended: ${readFileSync(file('log'), 'utf8')}`);
    await sleep(200);
  }
  const ready = JSON.parse(readFileSync(file('ready'), 'utf8'));
  const { token } = ready.users.find(({ name }) => name === 'alice');
  writeFileSync(file('ask'), `#!/bin/sh\necho ${token}\n`, { mode: 0o700 });
  const ssh = ['-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR', '-o', 'PubkeyAuthentication=no'];
  ssh.push('-p', String(ready.ssh.port), 'lab@127.0.0.1');
  const env = { ...process.env, SSH_ASKPASS: file('ask'), SSH_ASKPASS_REQUIRE: 'force', DORMOUSE_TOKEN: token };
  const neighbour = async () => {
    const began = performance.now();
    await run('ssh', [...ssh, 'echo here'], { env, timeout: 60_000 });
    return ((performance.now() - began) / 1000).toFixed(2);
  };
  const flood = start('ssh', [...ssh, `exec ${load} flood --socket ${socket} --after ${connections * channels}`], { env });
  await flood.line;
  const [before, quiet] = [await settled(() => mebibytes(dev.child.pid)), await neighbour()];
  const unread = start(load, ['unread', '--ssh', `127.0.0.1:${ready.ssh.port}`, '--socket', socket, '--connections', String(connections), '--channels', String(channels)], { env });
  await unread.line;
  const after = await settled(() => mebibytes(dev.child.pid));
  const beside = await neighbour();
  console.log(`${connections * channels} unread channels on ${connections} connections: ${before.toFixed(0)} MiB before, ${after.toFixed(0)} MiB with them`);
  console.log(`a new session of a neighbour: ${quiet} s before, ${beside} s beside them`);
} finally {
  for (const child of children.reverse()) child.kill('SIGTERM');
  await Promise.all(children.map((child) => child.exitCode !== null || child.signalCode !== null || new Promise((resolve) => child.once('exit', resolve))));
  rmSync(folder, { recursive: true, force: true });
}
