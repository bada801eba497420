// What follows # in the address that somebody wanted to open is lost at a form: it is sent along.
// Without this script they land on the same page without it.
(() => {
  'use strict';

  const { hash } = location;
  if (hash.length < 2) return;
  for (const field of document.querySelectorAll('input[name=fragment]')) field.value = hash;
  for (const link of document.querySelectorAll('a[data-keeps=fragment]')) {
    link.search += `&fragment=${encodeURIComponent(hash)}`;
  }
})();
