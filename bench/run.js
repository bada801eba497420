// Runs all benchmarks, or those named.

import { spawn } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { read } from './options.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const usage = `All benchmarks, or those named.

usage: node bench/run.js [--quick] [--only micro,edge,token]

  make bench ARGS=--quick`;
const options = read(usage, { quick: { type: 'boolean', default: false }, only: { type: 'string' } });
const quick = options.quick;

const parts = {
  micro: [process.env.CARGO ?? 'cargo', ['bench', '--quiet', '-p', 'dormouse-domain', '--bench', 'request_path']],
  edge: [process.execPath, [path.join(here, 'edge.js'), ...(quick ? ['--quick'] : [])]],
  token: [process.execPath, [path.join(here, 'token.js'), ...(quick ? ['--rounds', '2', '--seconds', '1'] : [])]],
};

let child;
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child?.kill(signal));

function run([command, args]) {
  return new Promise((resolve, reject) => {
    child = spawn(command, args, { stdio: 'inherit', cwd: path.join(here, '..') });
    child.once('error', reject);
    child.once('exit', (code, signal) => resolve(code ?? signal));
  });
}

const names = options.only?.split(',') ?? Object.keys(parts);
const unknown = names.find((name) => !(name in parts));
if (unknown) {
  console.error(`bench: --only ${unknown}: there are ${Object.keys(parts).join(', ')}`);
  process.exit(2);
}
for (const name of names) {
  console.error(`bench: ${name}`);
  const end = await run(parts[name]);
  if (end !== 0) {
    console.error(`bench: ${name} failed (${end})`);
    process.exit(1);
  }
}
