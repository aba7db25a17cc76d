-- What litejobs made before its first release, as of the schema with the number 3.
CREATE TABLE litejobs_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;

CREATE TABLE litejobs_job (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL,
    queue        TEXT,
    node         TEXT    NOT NULL DEFAULT '',
    priority     INTEGER,
    state        TEXT    NOT NULL DEFAULT 'pending' CHECK (

                     state = 'pending' OR state = 'running' OR state = 'completed' OR state IN
                     ('scheduled', 'retrying', 'failed', 'cancelled', 'paused', 'blocked')),
    payload      ANY     NOT NULL DEFAULT '{}',
    run_at       INTEGER,
    attempt      INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER,
    timeout      INTEGER,
    backoff      TEXT,
    retention    TEXT,
    claim        INTEGER NOT NULL DEFAULT 0,
    lost         INTEGER NOT NULL DEFAULT 0,
    holder       INTEGER,
    cancel_at    INTEGER,
    enqueued_at  INTEGER,
    started_at   INTEGER,
    finished_at  INTEGER,
    prune_at     INTEGER,
    result       TEXT,
    error        TEXT
) STRICT;

CREATE INDEX litejobs_ready ON litejobs_job (queue, name, node, priority DESC, run_at)
    WHERE state = 'pending';
CREATE INDEX litejobs_due ON litejobs_job (state, run_at)
    WHERE state IN ('scheduled', 'retrying');
CREATE INDEX litejobs_held ON litejobs_job (holder) WHERE state = 'running';
CREATE INDEX litejobs_asked ON litejobs_job (holder) WHERE cancel_at IS NOT NULL;
CREATE INDEX litejobs_shelf ON litejobs_job (queue, name, state)
    WHERE state <> 'pending' AND state <> 'running';
CREATE INDEX litejobs_prune ON litejobs_job (prune_at) WHERE prune_at IS NOT NULL;

CREATE TABLE litejobs_count (
    state        TEXT NOT NULL,
    queue        TEXT NOT NULL,
    name         TEXT NOT NULL,
    number       INTEGER NOT NULL,
    PRIMARY KEY (state, queue, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE litejobs_attempt (
    id           INTEGER PRIMARY KEY,
    job          INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    kind         TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    message      TEXT    NOT NULL,
    traceback    TEXT    NOT NULL,
    worker       INTEGER NOT NULL,
    started_at   INTEGER NOT NULL,
    finished_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX litejobs_attempt_job ON litejobs_attempt (job);

CREATE TABLE litejobs_definition (
    name         TEXT PRIMARY KEY,
    queue        TEXT NOT NULL,
    node         TEXT NOT NULL,
    priority     INTEGER NOT NULL,
    max_attempts INTEGER,
    timeout      INTEGER,
    backoff      TEXT,
    retention    TEXT
) STRICT;

CREATE TABLE litejobs_node (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL,
    pid          INTEGER NOT NULL,
    port         INTEGER NOT NULL,
    workers      INTEGER NOT NULL,
    queues       TEXT,
    started_at   INTEGER NOT NULL
) STRICT;

CREATE TRIGGER litejobs_enqueue AFTER INSERT ON litejobs_job
WHEN NEW.enqueued_at IS NULL OR NEW.queue IS NULL OR NEW.priority IS NULL OR NEW.run_at IS NULL
BEGIN
    SELECT RAISE(ABORT, 'litejobs: payload is not JSON')
        WHERE typeof(NEW.payload) <> 'text' OR NOT json_valid(NEW.payload);
    SELECT RAISE(ABORT, 'litejobs: retention is not JSON')
        WHERE NEW.retention IS NOT NULL AND NOT json_valid(NEW.retention);
    SELECT RAISE(ABORT, 'litejobs: backoff is not JSON')
        WHERE NEW.backoff <> 'custom' AND NOT json_valid(NEW.backoff);
    SELECT RAISE(ABORT, 'litejobs: run_at is not in microseconds since 1970')
        WHERE NEW.run_at NOT BETWEEN 0 AND 253402300799999999;
    UPDATE litejobs_job SET
        enqueued_at  = coalesce(NEW.enqueued_at, time.now),
        run_at       = coalesce(NEW.run_at, time.now),
        state        = CASE WHEN NEW.state = 'pending' AND NEW.run_at > time.now
                            THEN 'scheduled' ELSE NEW.state END,
        queue        = coalesce(NEW.queue, known.queue, 'default'),
        node         = coalesce(nullif(NEW.node, ''), known.node, ''),
        priority     = coalesce(NEW.priority, known.priority, 0),
        max_attempts = CASE WHEN NEW.max_attempts IS NULL AND known.name IS NOT NULL
                            THEN known.max_attempts ELSE coalesce(NEW.max_attempts, 5) END,
        timeout      = coalesce(NEW.timeout, known.timeout),
        backoff      = coalesce(NEW.backoff, known.backoff),
        retention    = coalesce(NEW.retention, known.retention)
    FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) AS now) AS time
        LEFT JOIN litejobs_definition AS known ON known.name = NEW.name
    WHERE id = NEW.id;
END;

CREATE TRIGGER litejobs_added AFTER INSERT ON litejobs_job
WHEN NEW.queue IS NOT NULL AND NEW.state NOT IN ('pending', 'running')
BEGIN
    INSERT INTO litejobs_count VALUES (NEW.state, NEW.queue, NEW.name, 1)
        ON CONFLICT DO UPDATE SET number = number + 1;
END;

CREATE TRIGGER litejobs_changed AFTER UPDATE OF state, queue, name ON litejobs_job
BEGIN
    INSERT INTO litejobs_count SELECT OLD.state, OLD.queue, OLD.name, -1
        WHERE OLD.queue IS NOT NULL AND OLD.state NOT IN ('pending', 'running')
        ON CONFLICT DO UPDATE SET number = number - 1;
    INSERT INTO litejobs_count SELECT NEW.state, NEW.queue, NEW.name, 1
        WHERE NEW.state NOT IN ('pending', 'running')
        ON CONFLICT DO UPDATE SET number = number + 1;
END;

CREATE TRIGGER litejobs_forget AFTER DELETE ON litejobs_job
BEGIN
    DELETE FROM litejobs_attempt WHERE job = OLD.id;
    INSERT INTO litejobs_count SELECT OLD.state, OLD.queue, OLD.name, -1
        WHERE OLD.state NOT IN ('pending', 'running')
        ON CONFLICT DO UPDATE SET number = number - 1;
END;

ALTER TABLE litejobs_job ADD COLUMN headers TEXT;
ALTER TABLE litejobs_job ADD COLUMN key TEXT;
ALTER TABLE litejobs_job ADD COLUMN key_limit INTEGER;
ALTER TABLE litejobs_job ADD COLUMN unique_key TEXT;
ALTER TABLE litejobs_job ADD COLUMN unique_scope TEXT;
ALTER TABLE litejobs_job ADD COLUMN unique_until INTEGER;
ALTER TABLE litejobs_job ADD COLUMN expires_at INTEGER;
ALTER TABLE litejobs_job ADD COLUMN progress TEXT;
ALTER TABLE litejobs_job ADD COLUMN schedule TEXT;

CREATE UNIQUE INDEX litejobs_unique ON litejobs_job (unique_key)
    WHERE unique_key IS NOT NULL AND (
        unique_scope = 'exists'
        OR state <> 'completed' AND state <> 'failed' AND state <> 'cancelled'
            AND (unique_scope = 'active' OR claim = 0)
    );
CREATE INDEX litejobs_key ON litejobs_job (state, key, priority DESC, run_at)
    WHERE key IS NOT NULL AND state IN ('pending', 'running', 'blocked');
CREATE INDEX litejobs_expiry ON litejobs_job (expires_at) WHERE expires_at IS NOT NULL;
DROP INDEX litejobs_held;
CREATE INDEX litejobs_held ON litejobs_job (queue, holder) WHERE state = 'running';

ALTER TABLE litejobs_attempt ADD COLUMN exit_code INTEGER;
ALTER TABLE litejobs_attempt ADD COLUMN cpu INTEGER;
ALTER TABLE litejobs_attempt ADD COLUMN memory INTEGER;
ALTER TABLE litejobs_attempt ADD COLUMN output TEXT;

ALTER TABLE litejobs_definition ADD COLUMN expires INTEGER;
ALTER TABLE litejobs_node ADD COLUMN names TEXT;

DROP TRIGGER litejobs_enqueue;
CREATE TRIGGER litejobs_enqueue AFTER INSERT ON litejobs_job
WHEN NEW.enqueued_at IS NULL OR NEW.queue IS NULL OR NEW.priority IS NULL OR NEW.run_at IS NULL
BEGIN
    SELECT RAISE(ABORT, 'litejobs: payload is not JSON')
        WHERE typeof(NEW.payload) <> 'text' OR NOT json_valid(NEW.payload);
    SELECT RAISE(ABORT, 'litejobs: retention is not JSON')
        WHERE NEW.retention IS NOT NULL AND NOT json_valid(NEW.retention);
    SELECT RAISE(ABORT, 'litejobs: backoff is not JSON')
        WHERE NEW.backoff <> 'custom' AND NOT json_valid(NEW.backoff);
    SELECT RAISE(ABORT, 'litejobs: headers is not JSON')
        WHERE NEW.headers IS NOT NULL AND NOT json_valid(NEW.headers);
    SELECT RAISE(ABORT, 'litejobs: run_at is not in microseconds since 1970')
        WHERE NEW.run_at NOT BETWEEN 0 AND 253402300799999999;
    UPDATE litejobs_job SET
        enqueued_at  = coalesce(NEW.enqueued_at, time.now),
        run_at       = coalesce(NEW.run_at, time.now),
        state        = CASE WHEN NEW.state <> 'pending' THEN NEW.state
                            WHEN NEW.run_at > time.now THEN 'scheduled'
                            WHEN NEW.key IS NOT NULL AND coalesce(NEW.key_limit, 1) <= (
                                SELECT count(*) FROM litejobs_job
                                WHERE key = NEW.key AND id <> NEW.id
                                    AND state IN ('pending', 'running')
                            ) THEN 'blocked'
                            ELSE 'pending' END,
        queue        = coalesce(NEW.queue, known.queue, 'default'),
        node         = coalesce(nullif(NEW.node, ''), known.node, ''),
        priority     = coalesce(NEW.priority, known.priority, 0),
        max_attempts = CASE WHEN NEW.max_attempts IS NULL AND known.name IS NOT NULL
                            THEN known.max_attempts ELSE coalesce(NEW.max_attempts, 5) END,
        timeout      = coalesce(NEW.timeout, known.timeout),
        backoff      = coalesce(NEW.backoff, known.backoff),
        retention    = coalesce(NEW.retention, known.retention),
        expires_at   = coalesce(NEW.expires_at, coalesce(NEW.run_at, time.now) + known.expires)
    FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) AS now) AS time
        LEFT JOIN litejobs_definition AS known ON known.name = NEW.name
    WHERE id = NEW.id;
END;

CREATE TABLE litejobs_queue (
    name         TEXT PRIMARY KEY,
    paused       INTEGER NOT NULL DEFAULT 0,
    concurrency  INTEGER,
    rate         REAL,
    burst        INTEGER,
    weight       REAL,
    ageing       INTEGER,
    max_attempts INTEGER,
    timeout      INTEGER,
    backoff      TEXT,
    tokens       REAL,
    filled_at    INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE litejobs_schedule (
    name         TEXT PRIMARY KEY,
    definition   TEXT    NOT NULL,
    payload      ANY     NOT NULL,
    options      TEXT    NOT NULL,
    expression   TEXT    NOT NULL,
    timezone     TEXT    NOT NULL,
    misfire      TEXT    NOT NULL,
    grace        INTEGER NOT NULL,
    overlap      TEXT    NOT NULL,
    jitter       INTEGER NOT NULL,
    start_at     INTEGER,
    end_at       INTEGER,
    origin       TEXT,
    paused       INTEGER NOT NULL DEFAULT 0,
    next_at      INTEGER,
    last_at      INTEGER,
    last_job     INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX litejobs_tick ON litejobs_schedule (next_at)
    WHERE next_at IS NOT NULL AND NOT paused;

CREATE TABLE litejobs_metric (
    span         INTEGER NOT NULL,
    time         INTEGER NOT NULL,
    queue        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    measure      TEXT    NOT NULL,
    bucket       INTEGER NOT NULL,
    number       INTEGER NOT NULL,
    PRIMARY KEY (span, time, queue, name, measure, bucket)
) STRICT, WITHOUT ROWID;

INSERT INTO litejobs_meta VALUES ('schema', 3);
