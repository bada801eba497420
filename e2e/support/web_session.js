// A person with a browser, without a browser: cookies, redirects and the sign-in form.

import { navigation, request } from './client.js';

const REDIRECTS_MAX = 12;

/** One browser profile: keeps cookies by host, follows redirects. */
export class WebSession {
  #instance;
  #cookies = new Map();

  constructor(instance) {
    this.#instance = instance;
  }

  /** `name=value; ...` for a URL, as the browser would send it. */
  cookieHeader(url) {
    const jar = this.#cookies.get(new URL(url).hostname) ?? new Map();
    const { pathname } = new URL(url);
    return [...jar.values()]
      .filter(({ path }) => pathname === path || pathname.startsWith(path.endsWith('/') ? path : `${path}/`))
      .map(({ name, value }) => `${name}=${value}`)
      .join('; ');
  }

  /** Cookies of a host: `{ name, value, path, attributes }`. */
  cookies(url) {
    return [...(this.#cookies.get(new URL(url).hostname) ?? new Map()).values()];
  }

  #keep(url, headers) {
    const host = new URL(url).hostname;
    const jar = this.#cookies.get(host) ?? new Map();
    this.#cookies.set(host, jar);
    for (const line of headers['set-cookie'] ?? []) {
      const [pair, ...rest] = line.split(';').map((part) => part.trim());
      const name = pair.slice(0, pair.indexOf('='));
      const value = pair.slice(pair.indexOf('=') + 1);
      const attributes = rest.map((attribute) => attribute.toLowerCase());
      const path = attributes.find((one) => one.startsWith('path='))?.slice('path='.length) ?? '/';
      const expired = attributes.includes('max-age=0') || value === '';
      if (expired) jar.delete(name);
      else jar.set(name, { name, value, path, attributes });
    }
  }

  /** One exchange, redirects not followed. */
  async send(url, { method = 'GET', headers = {}, body } = {}) {
    const cookie = this.cookieHeader(url);
    const all = { ...navigation, ...headers, ...(cookie ? { cookie } : {}) };
    const response = await request(this.#instance, url, { method, headers: all, body });
    this.#keep(url, response.headers);
    return { ...response, url };
  }

  /** Opens a page and follows redirects to its end. */
  async open(url, options) {
    let response = await this.send(url, options);
    for (let hop = 0; response.status >= 300 && response.status < 400 && response.headers.location; hop += 1) {
      if (hop === REDIRECTS_MAX) throw new Error(`too many redirects from ${url}`);
      response = await this.send(new URL(response.headers.location, response.url).href);
    }
    return response;
  }

  /** Fills in the sign-in form of the page and sends it; answers where that leads. */
  async submitSignIn(page, { name, password }) {
    const { action, fields } = signInForm(page);
    for (const field of fields) {
      if (field.type === 'password') field.value = password;
      else if (field.type !== 'hidden' && field.type !== 'submit' && field.type !== 'checkbox') field.value = name;
    }
    const body = new URLSearchParams(
      fields.filter(({ type, name: key }) => key && type !== 'checkbox').map(({ name: key, value }) => [key, value]),
    ).toString();
    return this.open(action, {
      method: 'POST',
      headers: {
        'content-type': 'application/x-www-form-urlencoded',
        'content-length': Buffer.byteLength(body),
        origin: new URL(page.url).origin,
      },
      body,
    });
  }
}

/** Opens `url` as a person who is not signed in yet; answers the session and the page it came to. */
export async function signIn(instance, userName, url) {
  const session = new WebSession(instance);
  const form = await session.open(url);
  if (form.status !== 200) throw new Error(`expected the sign-in page, got ${form.status} from ${form.url}`);
  const page = await session.submitSignIn(form, instance.user(userName));
  return { session, page };
}

function attribute(tag, name) {
  const found = new RegExp(`\\s${name}\\s*=\\s*("([^"]*)"|'([^']*)'|([^\\s>]+))`, 'i').exec(tag);
  return unescape(found?.[2] ?? found?.[3] ?? found?.[4]);
}

function unescape(text) {
  return text
    ?.replaceAll('&quot;', '"')
    .replaceAll('&#34;', '"')
    .replaceAll('&#x2F;', '/')
    .replaceAll('&#38;', '&')
    .replaceAll('&amp;', '&');
}

/** The form with a password on a page: `{ action, fields: [{ name, type, value }] }`. */
function signInForm(page) {
  for (const form of page.text.match(/<form[\s\S]*?<\/form>/gi) ?? []) {
    const fields = (form.match(/<(input|button)[^>]*>/gi) ?? []).map((tag) => ({
      name: attribute(tag, 'name'),
      type: (attribute(tag, 'type') ?? (tag.startsWith('<button') ? 'submit' : 'text')).toLowerCase(),
      value: attribute(tag, 'value') ?? '',
    }));
    if (!fields.some(({ type }) => type === 'password')) continue;
    const action = attribute(form.slice(0, form.indexOf('>') + 1), 'action') || page.url;
    return { action: new URL(action, page.url).href, fields };
  }
  throw new Error(`no sign-in form at ${page.url}`);
}
