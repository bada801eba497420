// Passkeys on the sign-in and account pages. Without this script they still work by password.
(() => {
  'use strict';

  const form = document.getElementById('passkey');
  if (!form || !globalThis.PublicKeyCredential || !navigator.credentials) return;
  const problem = document.getElementById('passkey-problem');
  const button = form.querySelector('button');
  /** A request that waits in the name field's list of suggestions. */
  let waiting;

  const toBytes = (text) => {
    const binary = atob(text.replaceAll('-', '+').replaceAll('_', '/'));
    return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  };
  const toText = (buffer) => {
    if (!buffer) return undefined;
    let binary = '';
    for (const byte of new Uint8Array(buffer)) binary += String.fromCharCode(byte);
    return btoa(binary).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
  };
  const descriptors = (list) => (list || []).map((one) => ({ ...one, id: toBytes(one.id) }));

  /** A fresh challenge: `{ options, challenge }`. */
  async function ask() {
    const response = await fetch(form.dataset.options, { method: 'POST', credentials: 'same-origin' });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.detail || 'the server does not answer');
    answer.options.challenge = toBytes(answer.options.challenge);
    return answer;
  }

  async function register() {
    const { options, challenge } = await ask();
    options.user.id = toBytes(options.user.id);
    options.excludeCredentials = descriptors(options.excludeCredentials);
    const made = await navigator.credentials.create({ publicKey: options });
    const { response } = made;
    const transports = response.getTransports ? response.getTransports() : undefined;
    send(challenge, made, {
      attestationObject: toText(response.attestationObject),
      clientDataJSON: toText(response.clientDataJSON),
      transports,
    });
  }

  async function signIn(request) {
    const { options, challenge } = await ask();
    options.allowCredentials = descriptors(options.allowCredentials);
    const found = await navigator.credentials.get({ ...request, publicKey: options });
    const { response } = found;
    send(challenge, found, {
      authenticatorData: toText(response.authenticatorData),
      clientDataJSON: toText(response.clientDataJSON),
      signature: toText(response.signature),
      userHandle: toText(response.userHandle),
    });
  }

  function send(challenge, credential, response) {
    const { id, type } = credential;
    const extensions = credential.getClientExtensionResults();
    form.elements.challenge.value = challenge;
    form.elements.credential.value = JSON.stringify({
      id, rawId: toText(credential.rawId), type, response, extensions,
    });
    form.submit();
  }

  function say(error) {
    const texts = {
      NotAllowedError: 'No passkey was used: it was cancelled, or took too long.',
      InvalidStateError: 'This device has a passkey of yours for this site already.',
      SecurityError: 'Your browser does not allow passkeys at this address.',
    };
    problem.textContent = texts[error.name] || `That did not work: ${error.message}.`;
    problem.hidden = false;
  }

  /** Offers passkeys among the suggestions for the name, where the browser can do that. */
  async function offer() {
    const can = PublicKeyCredential.isConditionalMediationAvailable;
    if (!can || !(await can.call(PublicKeyCredential))) return;
    waiting = new AbortController();
    const { signal } = waiting;
    // A challenge does not last long; the page may.
    const renew = setTimeout(() => {
      if (signal.aborted) return;
      waiting.abort();
      offer().catch(() => {});
    }, 4 * 60 * 1000);
    try {
      await signIn({ mediation: 'conditional', signal });
    } catch {
      // Nobody asked for it, so nobody needs to hear of it.
      clearTimeout(renew);
    }
  }

  const adds = form.dataset.does === 'add';
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (waiting) waiting.abort();
    problem.hidden = true;
    button.disabled = true;
    (adds ? register() : signIn({})).catch(say).finally(() => {
      button.disabled = false;
    });
  });
  form.hidden = false;
  // Not right after one was refused: a browser with a single passkey may answer by itself, for ever.
  const signs = form.dataset.does === 'sign-in';
  if (signs && location.pathname !== '/sign-in/passkey') offer().catch(() => {});
})();
