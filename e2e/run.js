// Runs the end-to-end tests: those that can share one `dormouse dev`, then those that need one to
// themselves. Arguments pick files by name: `node run.js ssh sleep`.

import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { Instance, foreignKubeconfig } from './support/instance.js';

const here = fileURLToPath(new URL('.', import.meta.url));
/** Each starts, kills or starves an instance, so it has its own. */
const alone = ['sleep', 'restart'];

const names = readdirSync(path.join(here, 'tests')).map((file) => file.replace(/\.test\.js$/, ''));
const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !names.includes(name));
if (unknown.length > 0) {
  console.error(`no such test: ${unknown.join(', ')}. There are: ${names.join(', ')}`);
  process.exit(2);
}
const chosen = names.filter((name) => asked.length === 0 || asked.includes(name)).sort();

/** `node --test` over the files, one after the other. Answers whether all passed. */
function nodeTest(files, env) {
  return new Promise((resolve) => {
    const paths = files.map((name) => path.join('tests', `${name}.test.js`));
    const args = ['--test', '--test-concurrency=1', '--test-reporter=spec', ...paths];
    const child = spawn(process.execPath, args, { cwd: here, stdio: 'inherit', env: { ...process.env, ...env } });
    child.on('close', (code) => resolve(code === 0));
  });
}

async function main() {
  rmSync(path.join(here, 'artifacts'), { recursive: true, force: true });
  mkdirSync(path.join(here, 'artifacts'), { recursive: true });
  // What lives on in a foreign cluster belongs to one data directory and one set of ports.
  if (foreignKubeconfig) process.env.DORMOUSE_E2E_KEPT = JSON.stringify(await Instance.newPlace('kept'));

  let passed = true;
  const sharing = chosen.filter((name) => !alone.includes(name));
  if (sharing.length > 0) {
    const instance = await (await Instance.create('shared')).start();
    console.log(`dormouse dev ready after ${instance.secondsToReady.toFixed(1)} s`);
    try {
      const env = { DORMOUSE_E2E_SHARED: JSON.stringify(instance.description()) };
      passed = await nodeTest(sharing, env);
    } finally {
      await instance.stop();
    }
    if (passed) instance.remove();
  }
  for (const name of chosen.filter((one) => alone.includes(one))) {
    passed = (await nodeTest([name], {})) && passed;
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
