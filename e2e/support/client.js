// HTTPS as an API client speaks it: verified against the development authority, every host name on
// loopback.

import https from 'node:https';
import { withDeadline } from './deadline.js';

/** `*.localhost` is loopback, whatever this machine's resolver says. */
export function lookup(_hostname, options, callback) {
  if (options.all) callback(null, [{ address: '127.0.0.1', family: 4 }]);
  else callback(null, '127.0.0.1', 4);
}

/**
 * Sends a request and answers when the head of the response is there: node's IncomingMessage.
 * `token` becomes the Authorization header.
 */
export function open(instance, url, { method = 'GET', headers = {}, token, body, within = 30_000 } = {}) {
  const all = { ...headers };
  if (token) all.authorization = `Bearer ${token}`;
  const response = new Promise((resolve, reject) => {
    const options = { method, headers: all, ca: instance.ca, lookup, agent: false };
    const request = https.request(url, options, resolve);
    request.on('error', reject);
    request.end(body);
  });
  return withDeadline(`an answer to ${method} ${url}`, within, response);
}

/** Sends a request and reads all of the response: `{ status, headers, text, json() }`. */
export async function request(instance, url, options = {}) {
  const response = await open(instance, url, options);
  const chunks = [];
  const read = (async () => {
    for await (const chunk of response) chunks.push(chunk);
  })();
  await withDeadline(`the body of ${url}`, options.within ?? 30_000, read);
  const text = Buffer.concat(chunks).toString();
  return { status: response.statusCode, headers: response.headers, text, json: () => JSON.parse(text) };
}

/** Headers of a browser that opens a page. */
export const navigation = {
  accept: 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8',
  'sec-fetch-mode': 'navigate',
  'sec-fetch-dest': 'document',
};
