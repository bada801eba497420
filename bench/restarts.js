// How soon the controller acts again after the API server was killed and started anew: the embedded API server and the
// controller as two processes, a change of a workspace and of an app right after it is ready, and the time until what lies
// under them has changed. The embedded server answers 410 to every watch of before, as a real one does; it does not answer
// 403 and 429 in its first seconds.

import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';

const usage = `usage: node bench/restarts.js [--target DIR] [--down SECONDS,...] [--load N]

  --target DIR   where the binaries are (default: target/debug); build them with
                 cargo build --workspace --bins --examples
  --down LIST    how long the API server is away each time (default: 1,1,2,2,3,3,5,5,8,8,13,13,20,20,30,30,45,60,90,120)
  --load N       workspaces and apps each that exist besides (default: 25)

example: node bench/restarts.js --down 1,5,20`;

const { values } = parseArgs({
  options: {
    target: { type: 'string', default: 'target/debug' },
    down: { type: 'string', default: '1,1,2,2,3,3,5,5,8,8,13,13,20,20,30,30,45,60,90,120' },
    load: { type: 'string', default: '25' },
    help: { type: 'boolean', default: false },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const downs = values.down.split(',').map(Number);
const binary = (name) => path.resolve(values.target, name);
for (const name of ['dormouse', 'examples/apiserver']) {
  if (!existsSync(binary(name))) throw new Error(`${binary(name)} is not there: cargo build --workspace --bins --examples`);
}

const run = promisify(execFile);
const folder = mkdtempSync(path.join(os.tmpdir(), 'restarts-'));
const kubeconfig = path.join(folder, 'kubeconfig');
const kubectl = async (...args) => (await run('kubectl', ['--kubeconfig', kubeconfig, ...args], { timeout: 20_000 })).stdout;

/** Waits for `is` to be true, and answers the milliseconds that took. */
async function until(what, is, within = 300_000) {
  const began = performance.now();
  for (;;) {
    if (await is().catch(() => false)) return performance.now() - began;
    if (performance.now() - began > within) throw new Error(`waited ${within / 1000} s for ${what}`);
    await sleep(20);
  }
}

function start(program, args, name) {
  const child = spawn(binary(program), args, { stdio: ['ignore', 'ignore', 'ignore'] });
  child.on('exit', (code, signal) => {
    if (signal !== 'SIGKILL' && !stopping) console.error(`${name} has ended: ${code ?? signal}`);
  });
  return child;
}

const startApi = async () => {
  const child = start('examples/apiserver', [folder], 'the API server');
  await until('the API server', async () => existsSync(kubeconfig) && (await kubectl('get', '--raw', '/readyz')) !== '', 60_000);
  return child;
};

const workload = (kind, name) => ({
  apiVersion: 'dormouse.dev/v1alpha1',
  kind,
  metadata: { name, namespace: 'team' },
  spec: { owner: 'alice', image: 'any' },
});

let stopping = false;
let api = await startApi();
let controller;
try {
  await kubectl('apply', '--server-side', '-f', path.resolve('config/crd'));
  await kubectl('create', 'namespace', 'team');
  const names = Array.from({ length: Number(values.load) }, (_, n) => `load${n}`);
  const items = ['w', ...names].map((name) => workload('Workspace', name)).concat(['a', ...names.map((n) => `${n}a`)].map((name) => workload('App', name)));
  writeFileSync(path.join(folder, 'all.json'), JSON.stringify({ apiVersion: 'v1', kind: 'List', items }));
  await until('the kinds to be served', () => kubectl('apply', '-f', path.join(folder, 'all.json')), 60_000);
  writeFileSync(
    path.join(folder, 'controller.toml'),
    `admin_listen = "127.0.0.1:0"\nkubeconfig = "${kubeconfig}"\naudit_file = "${path.join(folder, 'audit')}"\n[controller]\nbase_domain = "example.com"\ngateways = []\n[controller.agent]\nimage = "any"\ngateway_key = "ssh-ed25519 AAAA"\n`,
  );
  controller = start('dormouse', ['controller', '--config', path.join(folder, 'controller.toml')], 'the controller');
  const replicas = async (what) => (await kubectl('get', what, '-n', 'team', '-o', 'jsonpath={.spec.replicas}')).trim();
  const has = (what, number) => async () => (await replicas(what)) === String(number);
  await until('the first reconciliation', async () => (await has('statefulset/w', 1)()) && (await has('deployment/a', 1)()));
  const all = [];
  console.log('down s   workspace ms   app ms   (from ready, the change included)');
  for (const [n, down] of downs.entries()) {
    api.kill('SIGKILL');
    await sleep(down * 1000);
    api = await startApi();
    const ready = performance.now();
    const wanted = n % 2;
    await Promise.all(['workspace/w', 'app/a'].map((what) => kubectl('scale', what, '-n', 'team', `--replicas=${wanted}`)));
    const since = async (what) => {
      await until(what, has(what, wanted));
      return Math.round(performance.now() - ready);
    };
    const took = await Promise.all([since('statefulset/w'), since('deployment/a')]);
    all.push(...took);
    console.log(`${String(down).padStart(6)}   ${String(took[0]).padStart(12)}   ${String(took[1]).padStart(6)}`);
  }
  all.sort((a, b) => a - b);
  const at = (part) => all[Math.min(all.length - 1, Math.ceil(all.length * part) - 1)];
  console.log(`${downs.length} restarts: p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, max ${all.at(-1)} ms`);
} finally {
  stopping = true;
  controller?.kill('SIGTERM');
  api.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
}
