// Runs the end-to-end tests: those that can share one `dormouse dev`, then those that need one to
// themselves. Arguments pick files by name: `node run.js ssh sleep`.

import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { Instance, foreignKubeconfig } from './support/instance.js';
import { describe, secretsInLogs } from './support/secrets.js';

const here = fileURLToPath(new URL('.', import.meta.url));
/** Each starts, kills or starves an instance, so it has its own. */
const alone = ['browser_attacks', 'quiet_terminal', 'relying_parties', 'restart', 'scope', 'sleep'];

const names = readdirSync(path.join(here, 'tests')).map((file) => file.replace(/\.test\.js$/, ''));
const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !names.includes(name));
if (unknown.length > 0) {
  console.error(`no such test: ${unknown.join(', ')}. There are: ${names.join(', ')}`);
  process.exit(2);
}
const chosen = names.filter((name) => asked.length === 0 || asked.includes(name)).sort();

/**
 * `node --test` over the files, one after the other. Answers whether all passed. `later` keeps the
 * output back until `show()` is called, for what runs beside something else.
 */
function nodeTest(files, env, later = false) {
  const paths = files.map((name) => path.join('tests', `${name}.test.js`));
  const args = ['--test', '--test-concurrency=1', '--test-reporter=spec', ...paths];
  const stdio = ['ignore', later ? 'pipe' : 'inherit', 'inherit'];
  const child = spawn(process.execPath, args, { cwd: here, stdio, env: { ...process.env, ...env } });
  const output = [];
  child.stdout?.on('data', (chunk) => output.push(chunk));
  const passed = new Promise((resolve) => {
    child.on('close', (code) => resolve(code === 0));
  });
  return { passed, show: () => process.stdout.write(Buffer.concat(output)) };
}

/** The files that share an instance. */
async function runSharing(files) {
  if (files.length === 0) return true;
  const instance = await (await Instance.create('shared')).start();
  console.log(`dormouse dev ready after ${instance.secondsToReady.toFixed(1)} s`);
  let passed;
  try {
    passed = await nodeTest(files, { DORMOUSE_E2E_SHARED: JSON.stringify(instance.description()) }).passed;
  } finally {
    await instance.stop();
  }
  // All that was said while everything else was tested.
  const { found } = secretsInLogs([path.join(here, 'artifacts'), instance.dataDir]);
  if (found.length > 0) {
    console.error(`secrets in logs:\n${describe(found)}`);
    passed = false;
  }
  if (passed) instance.remove();
  return passed;
}

async function main() {
  rmSync(path.join(here, 'artifacts'), { recursive: true, force: true });
  mkdirSync(path.join(here, 'artifacts'), { recursive: true });
  // What lives on in a foreign cluster belongs to one data directory and one set of ports.
  if (foreignKubeconfig) process.env.DORMOUSE_E2E_KEPT = JSON.stringify(await Instance.newPlace('kept'));

  // Falling asleep is mostly waiting, so it goes on beside the rest, unless there is but one cluster.
  const beside = foreignKubeconfig ? [] : chosen.filter((name) => name === 'sleep');
  const waiting = beside.length > 0 && nodeTest(beside, {}, true);
  let passed = await runSharing(chosen.filter((name) => !alone.includes(name)));
  for (const name of chosen.filter((one) => alone.includes(one) && !beside.includes(one))) {
    passed = (await nodeTest([name], {}).passed) && passed;
  }
  if (waiting) {
    passed = (await waiting.passed) && passed;
    waiting.show();
  }
  if (!passed) console.log(`logs of what was run: ${path.join(here, 'artifacts')}`);
  return passed;
}

main().then(
  (passed) => {
    process.exitCode = passed ? 0 : 1;
  },
  (error) => {
    console.error(error.message);
    process.exitCode = 1;
  },
);
