-- Registered applications. Keys and secrets are raw bytes of 32. A number beside a type is the most bytes it may hold in
-- MySQL, where what is in a key needs one; SQLite takes it for a comment.
CREATE TABLE app (
    id               TEXT /* 255 */ PRIMARY KEY NOT NULL,
    package          TEXT NOT NULL,
    app_key          TEXT NOT NULL,
    secret_sha256    BLOB /* 32 */ NOT NULL CHECK (length(secret_sha256) = 32),
    agreement_secret BLOB NOT NULL CHECK (length(agreement_secret) = 32),
    broadcast_key    BLOB NOT NULL CHECK (length(broadcast_key) = 32),
    signing_seed     BLOB NOT NULL CHECK (length(signing_seed) = 32),
    created_at_ms    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One secret names one application.
CREATE UNIQUE INDEX app_by_secret ON app (secret_sha256);

-- Tokens of an account that were issued before this moment are worthless.
CREATE TABLE token_revocation (
    account          BLOB /* 16 */ PRIMARY KEY NOT NULL CHECK (length(account) = 16),
    issued_before_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX token_revocation_by_time ON token_revocation (issued_before_ms);
