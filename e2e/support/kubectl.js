// kubectl with the kubeconfig of an instance.

import assert from 'node:assert/strict';

import { needs, run, which } from './command.js';

/** Older ones look for a schema in a form that API servers no longer offer. */
const MINOR_MIN = 27;

async function unusable() {
  if (!which('kubectl')) return needs('kubectl');
  const { stdout } = await run('kubectl', ['version', '--client', '--output=json']);
  const { major, minor } = JSON.parse(stdout).clientVersion;
  const old = Number(major) === 1 && Number.parseInt(minor, 10) < MINOR_MIN;
  return old ? { skip: `kubectl ${major}.${minor} is older than 1.${MINOR_MIN}` } : {};
}

/** Options for `test()`: skips with the reason when kubectl is absent or too old. */
export const needsKubectl = await unusable();

/** Runs kubectl; `input` is its standard input. Never throws for an exit code. */
export function kubectl(instance, args, input) {
  return run('kubectl', ['--kubeconfig', instance.ready.kubeconfig, ...args], { input });
}

/** kubectl that must succeed; answers its standard output. */
export async function kubectlOk(instance, args, input) {
  const { code, stdout, stderr } = await kubectl(instance, args, input);
  assert.equal(code, 0, `kubectl ${args.join(' ')}: ${stderr}`);
  return stdout;
}

/** The row of one name in a table that kubectl printed, as an object by column title. */
export function row(table, name) {
  const [head, ...lines] = table.trimEnd().split('\n');
  const columns = [...head.matchAll(/\S+(?: \S+)*/g)].map((match) => ({ title: match[0], from: match.index }));
  const line = lines.find((one) => new RegExp(`(^|\\s)${name}\\s`).test(one));
  if (!line) return undefined;
  return Object.fromEntries(
    columns.map(({ title, from }, index) => [title, line.slice(from, columns[index + 1]?.from).trim()]),
  );
}
