// Waiting for something that is observed, never for time to pass.

import { setTimeout as pause } from 'node:timers/promises';

/**
 * Waits until `condition()` answers something truthy, and returns that. Errors thrown by the
 * condition count as "not yet"; the last one is named when the deadline passes.
 */
export async function until(what, condition, { within = 30_000, every = 200 } = {}) {
  const end = Date.now() + within;
  let last;
  for (;;) {
    try {
      const value = await condition();
      if (value) return value;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (Date.now() >= end) {
      const why = last ? ` (last: ${last.message})` : '';
      throw new Error(`waited ${within / 1000} s for ${what}${why}`, { cause: last });
    }
    await pause(every);
  }
}

/** The promise's value, or an error that says what was waited for. */
export async function withDeadline(what, within, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${within / 1000} s for ${what}`)), within);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Calls `action` every `every` milliseconds until the returned function is called. */
export function repeatedly(every, action) {
  const timer = setInterval(action, every);
  return () => clearInterval(timer);
}
