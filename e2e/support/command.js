// Running a program to its end, and finding out whether it is there.

import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import path from 'node:path';

/** Path of a program, or undefined when it is not there. */
export function which(program) {
  if (path.isAbsolute(program)) return executable(program) ? program : undefined;
  return (process.env.PATH ?? '')
    .split(path.delimiter)
    .map((directory) => path.join(directory, program))
    .find(executable);
}

function executable(file) {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * Options for `test()`: runs it when all programs are there, else skips it and says why.
 * `needs('kubectl', 'certutil')`
 */
export function needs(...programs) {
  const absent = programs.filter((program) => !which(program));
  return absent.length === 0 ? {} : { skip: `${absent.join(' and ')} not found on this machine` };
}

/**
 * Runs a program to its end. Never throws for an exit code: the caller asserts it.
 * Answers `{ code, signal, stdout, stderr, seconds }`.
 */
export function run(program, args, { env, input, cwd, within = 60_000 } = {}) {
  return new Promise((resolve, reject) => {
    const started = Date.now();
    const child = spawn(program, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    });
    const out = [];
    const err = [];
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, within);
    child.stdout.on('data', (chunk) => out.push(chunk));
    child.stderr.on('data', (chunk) => err.push(chunk));
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      const result = {
        code,
        signal,
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString(),
        seconds: (Date.now() - started) / 1000,
      };
      if (late) {
        const said = `stdout: ${result.stdout}\nstderr: ${result.stderr}`;
        reject(new Error(`${program} ${args.join(' ')} did not end within ${within / 1000} s\n${said}`));
      } else {
        resolve(result);
      }
    });
    if (input !== undefined) child.stdin.end(input);
  });
}
