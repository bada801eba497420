-- Which settings' clients hold when replicas do not all have the same settings: those with the greatest
-- generation. A replica whose settings are older than those of another one that runs leaves the
-- clients as they are.
CREATE TABLE client_settings (
    digest     TEXT    NOT NULL PRIMARY KEY, -- of all clients of the settings
    generation INTEGER NOT NULL
);
CREATE TABLE settings_replicas (
    id      TEXT    NOT NULL PRIMARY KEY, -- of one run of one server
    digest  TEXT    NOT NULL,
    seen_at INTEGER NOT NULL
);

-- The newest migration that a server has to know to work with these tables. A version that takes
-- something away that older ones need raises it.
INSERT INTO feeds (name, version) VALUES ('needs-migration', 61);
