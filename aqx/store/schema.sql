-- The tables of an aqx database. Functions and classes are shared by all tasks; spectra, trials and embeddings belong to one.
-- The big tables have no keys: every writer holds the lock for its whole transaction and looks for what is there before it
-- inserts, while an index on a million rows would cost more than the rows. Tables with list columns are only appended to (or
-- lose whole groups of rows), never updated. All times are UTC.

-- schema_version, database_id, created_at; once functions are stored, the points of their outputs and the operators' digests.
CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

-- How many functions of a schema over a list of operators are stored, in the order of their enumeration.
CREATE TABLE families (schema VARCHAR, operators VARCHAR, done UBIGINT NOT NULL, PRIMARY KEY (schema, operators));

-- Every enumerated name and the class of equal functions it belongs to; size counts its operators.
CREATE TABLE functions (name VARCHAR NOT NULL, class_id UUID NOT NULL, size USMALLINT NOT NULL);

-- One row per class: its simplest name, and what is known of its values. Flags may be NULL where nobody looked.
CREATE TABLE class_info (
    class_id UUID NOT NULL,
    name VARCHAR NOT NULL,
    size USMALLINT NOT NULL,
    finite BOOLEAN,                -- in float32, at all output points
    finite_at_0 BOOLEAN,
    finite_at_20 BOOLEAN,          -- at both +20 and -20
    constant BOOLEAN,
    affine BOOLEAN,
    finite_gradient_at_0 BOOLEAN
);

-- Outputs on N(0,1), of the classes whose values are finite there. Fixing the points makes the type FLOAT[n].
CREATE TABLE class_outputs (class_id UUID NOT NULL, outputs FLOAT[] NOT NULL);

-- Not a LEFT JOIN: DuckDB 2.0.0 fails on one whose missing side has a fixed-size array ("Cannot cast list with length 0").
CREATE VIEW classes AS
    SELECT class_info.*, outputs FROM class_info JOIN class_outputs USING (class_id)
    UNION ALL
    SELECT class_info.*, NULL FROM class_info ANTI JOIN class_outputs USING (class_id);

-- What functions cost on a kind of device: nanoseconds for an element's value and gradient. Of single operators, "x" standing
-- for what every function costs; of classes, by the name that they had then, and relative to relu's.
CREATE TABLE operator_costs (
    device VARCHAR NOT NULL,
    operator VARCHAR NOT NULL,
    nanoseconds DOUBLE NOT NULL,
    versions VARCHAR NOT NULL,     -- of aqx and JAX
    measured_at TIMESTAMP NOT NULL
);

CREATE TABLE class_costs (
    class_id UUID NOT NULL,
    device VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    nanoseconds DOUBLE NOT NULL,
    relative DOUBLE NOT NULL
);

-- Whether 16-bit floats hold a class's values on [-30, 30], of the classes that somebody looked at.
CREATE TABLE class_precision (
    class_id UUID NOT NULL,
    float16_overflows BOOLEAN NOT NULL,
    float16_loses_digits BOOLEAN NOT NULL,
    bfloat16_overflows BOOLEAN NOT NULL,
    bfloat16_loses_digits BOOLEAN NOT NULL
);

-- identity: what must agree for stored spectra and trials to belong to the task; spectra_form: how its spectra were computed.
CREATE TABLE tasks (
    task_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    identity JSON NOT NULL,
    spectra_form JSON,
    created_at TIMESTAMP NOT NULL
);

-- status: valid (features stored) or invalid (reason stored, features NULL).
CREATE TABLE spectra (
    task_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    status VARCHAR NOT NULL,
    reason VARCHAR,
    features FLOAT[],
    created_at TIMESTAMP NOT NULL
);

-- Losses of short trainings from the task's initial weights on its batch, in the same form.
CREATE TABLE runs (
    task_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    status VARCHAR NOT NULL,
    reason VARCHAR,
    features FLOAT[],
    created_at TIMESTAMP NOT NULL
);

-- How the short runs of a task were computed.
CREATE TABLE runs_forms (task_id BIGINT NOT NULL, form JSON NOT NULL);

-- What the spectra and the short runs of a task are of: a digest of the batch, the loss and the initial weights. Those of the
-- current one stand in spectra and runs, those of earlier ones are aside. A number is never used twice; digest is NULL once they
-- are removed.
CREATE TABLE subjects (
    subject_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    digest JSON,
    current BOOLEAN NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE spectra_aside (
    subject_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    status VARCHAR NOT NULL,
    reason VARCHAR,
    features FLOAT[],
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE runs_aside (
    subject_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    status VARCHAR NOT NULL,
    reason VARCHAR,
    features FLOAT[],
    created_at TIMESTAMP NOT NULL
);

-- Classes whose spectrum a process is computing; past expires_at nobody is. worker: who, and by which clock.
CREATE TABLE spectra_claims (
    task_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    worker VARCHAR NOT NULL,
    expires_at TIMESTAMP NOT NULL
);

CREATE TABLE runs_claims (
    task_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    worker VARCHAR NOT NULL,
    expires_at TIMESTAMP NOT NULL
);

-- purpose: search, baseline, confirm, added. status: queued, running, done, pruned, failed; running past expires_at is called
-- stale. class_id is NULL for a function that was never enumerated. In metrics the strings "nan", "inf", "-inf" stand for numbers.
-- retry_of: the trial that somebody asked to be trained once more; what came of it and of earlier ones does not count against
-- this one. seconds, environment: how long the training took, and where and with what it ran. study_id: whose claim it was.
-- clock: of heartbeat_at and expires_at; process: what holds the claim as long as it lives; token: what a result should bring.
CREATE TABLE trials (
    trial_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    class_id UUID,
    name VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    purpose VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    objective DOUBLE,
    metrics JSON NOT NULL,
    reason VARCHAR,
    worker VARCHAR,
    started_at TIMESTAMP NOT NULL,
    heartbeat_at TIMESTAMP,
    expires_at TIMESTAMP,
    finished_at TIMESTAMP,
    retry_of BIGINT,
    seconds DOUBLE,
    environment JSON,
    study_id BIGINT,
    clock VARCHAR,
    process VARCHAR,
    token VARCHAR
);

-- The steady clocks by which claims are timed, one of each machine, another after a restart or a sleep. epoch: what it showed
-- when the machine's count of seconds began; reached: what it showed at the last claim or renewal by it.
CREATE TABLE clocks (
    clock VARCHAR NOT NULL,
    epoch TIMESTAMP NOT NULL,
    reached TIMESTAMP NOT NULL
);

-- When, by its own clock, an observer first saw what a clock had reached; at_least: what that one showed then, at least; ahead:
-- by how many seconds the two are known to differ.
CREATE TABLE sightings (
    observer VARCHAR NOT NULL,
    clock VARCHAR NOT NULL,
    reached TIMESTAMP NOT NULL,
    seen_at TIMESTAMP NOT NULL,
    at_least TIMESTAMP NOT NULL,
    ahead DOUBLE NOT NULL
);

-- By which seed, surrogate and pruner the trials of a task were chosen.
CREATE TABLE studies (
    study_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    surrogate VARCHAR NOT NULL,
    pruner VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);

-- A fitted embedding of all candidates, one per task, preset and seed. classes, spectra: how many there were; loadings: a NumPy
-- archive of what gives later candidates coordinates of the same kind, empty where nothing can. A number is never used twice.
CREATE SEQUENCE embedding_ids;

CREATE TABLE embeddings (
    embedding_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    preset VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    classes BIGINT NOT NULL,
    spectra BIGINT NOT NULL,
    loadings BLOB NOT NULL,
    created_at TIMESTAMP NOT NULL
);

-- How many classes had short runs when an embedding was fitted; without a row none. Theirs are the last coordinates.
CREATE TABLE embedding_runs (embedding_id BIGINT NOT NULL, runs BIGINT NOT NULL);

CREATE TABLE embedding_rows (
    embedding_id BIGINT NOT NULL,
    class_id UUID NOT NULL,
    has_spectrum BOOLEAN NOT NULL, -- when the embedding was fitted
    coordinates FLOAT[] NOT NULL
);
