// Programs of others that a test runs beside `dormouse dev`.

import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import path from 'node:path';

import { until, withDeadline } from './deadline.js';
import { repository } from './instance.js';

const artifacts = path.join(repository, 'e2e', 'artifacts');
const STOP_WITHIN = 10_000;

/**
 * Starts a program and waits until it answers well at `url`. Its output goes to `artifacts/NAME.log`.
 * Answers `stop()`.
 */
export async function startProgram(name, command, args, { env, cwd, url, within = 60_000 }) {
  mkdirSync(artifacts, { recursive: true });
  const file = path.join(artifacts, `${name}.log`);
  const log = openSync(file, 'a');
  // A group of its own, so that what it started goes with it.
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', log, log], detached: true });
  closeSync(log);
  let end;
  const ended = new Promise((resolve) => {
    const note = (how) => {
      end = how;
      resolve();
    };
    child.once('error', (error) => note(error.message));
    child.once('exit', (code, signal) => note(`it ended with ${code ?? signal}`));
  });
  const signal = (name_) => {
    try {
      process.kill(-child.pid, name_);
    } catch {
      // Gone in the meantime.
    }
  };
  const stop = async () => {
    if (!end) child.kill('SIGTERM');
    await withDeadline(`${name} to end`, STOP_WITHIN, ended).finally(() => child.pid && signal('SIGKILL'));
  };
  const answers = () => {
    if (end) return true;
    // A proxy may be up before what it stands in front of.
    return fetch(url, { redirect: 'manual' }).then(({ status }) => status < 400);
  };
  try {
    await until(`${name} to answer`, answers, { within, every: 100 });
    if (end) throw new Error(`${name} cannot run: ${end}`);
  } catch (error) {
    signal('SIGKILL');
    throw new Error(`${error.message}\n${readFileSync(file, 'utf8').slice(-4000)}`, { cause: error });
  }
  return { stop };
}
