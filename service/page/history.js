// The pictures made in this browser, in IndexedDB: the newest sixty, with what they were made of.

const MOST = 60;

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("cascade", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function transaction(mode, work) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const all = database.transaction("pictures", mode);
      const request = work(all.objectStore("pictures"));
      all.oncomplete = () => resolve(request.result);
      all.onerror = all.onabort = () => reject(all.error);
    });
  } finally {
    database.close();
  }
}

export async function remember(entry) {
  entry.id = await transaction("readwrite", (store) => store.add(entry));
  const keys = await transaction("readonly", (store) => store.getAllKeys());
  for (const old of keys.slice(0, -MOST)) await transaction("readwrite", (store) => store.delete(old));
}

export const remembered = () => transaction("readonly", (store) => store.getAll());
export const forget = () => transaction("readwrite", (store) => store.clear());
