// One request at a time, for checks.

import http from 'node:http';
import https from 'node:https';

/** A GET on loopback: `{ status, text }`. `tls` is a name to ask for, when TLS is to be spoken. */
export function get(port, pathname, { headers = {}, tls } = {}) {
  const options = { host: '127.0.0.1', port, path: pathname, headers, agent: false };
  // The certificate is one that the benchmark made a moment ago.
  const how = tls ? [https, { ...options, servername: tls, rejectUnauthorized: false }] : [http, options];
  return new Promise((resolve, reject) => {
    const sent = how[0].get(how[1], (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => resolve({ status: response.statusCode, text: Buffer.concat(chunks).toString() }));
    });
    sent.setTimeout(10_000, () => sent.destroy(new Error(`no answer from 127.0.0.1:${port}`)));
    sent.on('error', reject);
  });
}

/** Throws unless the answer has that status. */
export async function expectStatus(port, pathname, wanted, { headers, tls } = {}) {
  const { status, text } = await get(port, pathname, { headers, tls });
  if (status === wanted) return;
  throw new Error(`${pathname} was answered with ${status} and not ${wanted}: ${text.trim().slice(0, 200)}`);
}
