// Which processes belong to an instance, from /proc. A process belongs when it carries the
// instance's mark in its environment, or names the data directory in its environment, command line
// or working directory, or descends from one that does.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

function read(pid, file) {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return '';
  }
}

function cwd(pid) {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return '';
  }
}

/** Every process of the machine that is not a zombie: `{ pid, parent, start, command }`. */
function allProcesses() {
  const processes = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const stat = read(name, 'stat');
    // The command in parentheses may hold anything, so fields count from the last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields.length < 20 || fields[0] === 'Z') continue;
    processes.push({
      pid: Number(name),
      parent: Number(fields[1]),
      start: fields[19],
      command: read(name, 'cmdline').replaceAll('\0', ' ').trim(),
    });
  }
  return processes;
}

/** Processes of the instance, without the test's own. */
export function processesOf({ mark, dataDir, pid }) {
  const all = allProcesses();
  const ours = new Set();
  for (const process_ of all) {
    if (process_.pid === process.pid) continue;
    const seen = [read(process_.pid, 'environ'), process_.command, cwd(process_.pid)];
    const marked = seen.some((text) => text.includes(`DORMOUSE_E2E_MARK=${mark}`) || text.includes(`${dataDir}/`));
    if (marked || process_.pid === pid || cwd(process_.pid) === dataDir) ours.add(process_.pid);
  }
  let grew = true;
  while (grew) {
    grew = false;
    for (const { pid: child, parent } of all) {
      if (ours.has(parent) && !ours.has(child)) {
        ours.add(child);
        grew = true;
      }
    }
  }
  return all.filter(({ pid: one }) => ours.has(one));
}

/** Those of the given processes that are still there (a reused number is another process). */
export function stillThere(processes) {
  const now = new Map(allProcesses().map(({ pid, start }) => [pid, start]));
  return processes.filter(({ pid, start }) => now.get(pid) === start);
}
