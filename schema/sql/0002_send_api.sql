-- An application signs its receipts and may be limited in what it sends; 0 is no limit. The table is made anew because a
-- column that is added would need a default, and a secret must not have one.
CREATE TABLE app_with_limits (
    id                   TEXT /* 255 */ PRIMARY KEY NOT NULL,
    package              TEXT NOT NULL,
    app_key              TEXT NOT NULL,
    secret_sha256        BLOB /* 32 */ NOT NULL CHECK (length(secret_sha256) = 32),
    agreement_secret     BLOB NOT NULL CHECK (length(agreement_secret) = 32),
    broadcast_key        BLOB NOT NULL CHECK (length(broadcast_key) = 32),
    signing_seed         BLOB NOT NULL CHECK (length(signing_seed) = 32),
    webhook_secret       BLOB NOT NULL CHECK (length(webhook_secret) = 32),
    sends_per_second_max INTEGER NOT NULL CHECK (sends_per_second_max >= 0),
    sends_per_day_max    INTEGER NOT NULL CHECK (sends_per_day_max >= 0),
    created_at_ms        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO app_with_limits (id, package, app_key, secret_sha256, agreement_secret, broadcast_key, signing_seed,
                             webhook_secret, sends_per_second_max, sends_per_day_max, created_at_ms)
SELECT id, package, app_key, secret_sha256, agreement_secret, broadcast_key, signing_seed,
       randomblob(32), 0, 0, created_at_ms
FROM app;

DROP TABLE app;
ALTER TABLE app_with_limits RENAME TO app;
CREATE UNIQUE INDEX app_by_secret ON app (secret_sha256);

-- Audience expressions under names.
CREATE TABLE segment (
    app           TEXT /* 255 */ NOT NULL,
    name          TEXT /* 1024 */ NOT NULL CHECK (name <> ''),
    expression    TEXT NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    PRIMARY KEY (app, name)
) STRICT;

-- Texts with variables under names. Extras are a JSON object of strings.
CREATE TABLE template (
    app           TEXT /* 255 */ NOT NULL,
    name          TEXT /* 1024 */ NOT NULL CHECK (name <> ''),
    title         TEXT,
    description   TEXT,
    payload       TEXT,
    extra         TEXT NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    PRIMARY KEY (app, name)
) STRICT;

-- Sends that go out later. A firing has begun while firing_message is set.
CREATE TABLE schedule (
    id               BLOB /* 16 */ PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    app              TEXT /* 255 */ NOT NULL,
    job_key          TEXT /* 1024 */,
    created_at_ms    INTEGER NOT NULL,
    due_ms           INTEGER NOT NULL,
    local_time       TEXT,
    repeat_cron      TEXT,
    repeat_time_zone TEXT,
    repeat_until_ms  INTEGER,
    send             BLOB NOT NULL,
    state            TEXT /* 16 */ NOT NULL CHECK (state IN ('waiting', 'done')),
    firing_due_ms    INTEGER,
    firing_message   BLOB CHECK (length(firing_message) = 16),
    last_message     BLOB CHECK (length(last_message) = 16),
    fired            INTEGER NOT NULL CHECK (fired >= 0),
    CHECK ((repeat_cron IS NULL) = (repeat_time_zone IS NULL)),
    CHECK (repeat_until_ms IS NULL OR repeat_cron IS NOT NULL),
    CHECK ((firing_due_ms IS NULL) = (firing_message IS NULL))
) STRICT;

CREATE INDEX schedule_by_due ON schedule (state, due_ms, id);
CREATE INDEX schedule_by_app ON schedule (app, id);
CREATE INDEX schedule_by_job_key ON schedule (app, job_key, id) WHERE job_key IS NOT NULL;
-- How many of an application wait is counted whenever it makes another. MySQL, which has all rows in an index, takes the
-- comment for what it says.
CREATE INDEX schedule_that_waits ON schedule (app /*! , state */) WHERE state = 'waiting';
