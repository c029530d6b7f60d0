//! Answers to questions: `SELECT` without tables or on system tables, run by SQLite on tables made of the state,
//! and the `SHOW` statements.

use rusqlite::{Connection, functions::FunctionFlags, types::ValueRef};

use super::{
    sql,
    state::{Asked, Session, State},
    variables,
    wire::{Rows, SqlError},
};

type Answer = Result<Rows, SqlError>;
/// Performance schema's thread id of a connection is so much larger.
const THREAD: u64 = 40;

/// A question that names no user's table.
pub(super) fn select(state: &State, id: u64, statement: &str) -> Answer {
    let text = substituted(state, id, statement)?;
    let database = database(state, id).map_err(|error| SqlError::new(1105, error.to_string()))?;
    ask(&database, &text).map_err(|error| told(&error))
}

fn told(error: &rusqlite::Error) -> SqlError {
    let text = error.to_string();
    let code = [
        ("no such function", 1305),
        ("no such table", 1146),
        ("no such column", 1054),
        ("unknown database", 1049),
    ];
    let found = code.into_iter().find(|(says, _)| text.contains(says));
    SqlError { code: found.map_or(1064, |(_, code)| code), state: "42000", message: text }
}

fn ask(database: &Connection, text: &str) -> rusqlite::Result<Rows> {
    let mut statement = database.prepare(text)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let width = columns.len();
    let rows = statement.query_map([], |row| {
        (0..width).map(|index| row.get_ref(index).map(value)).collect::<rusqlite::Result<Vec<_>>>()
    })?;
    Ok(Rows { columns, rows: rows.collect::<rusqlite::Result<_>>()? })
}

fn value(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(text) | ValueRef::Blob(text) => Some(String::from_utf8_lossy(text).into_owned()),
    }
}

/// `@@variables` and `@variables` replaced by their values.
fn substituted(state: &State, id: u64, statement: &str) -> Result<String, SqlError> {
    let mut text = String::new();
    let mut quote = None;
    let mut rest = statement;
    while let Some(c) = rest.chars().next() {
        if quote.is_none() && c == '@' {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "@._$".contains(c))).unwrap_or(rest.len());
            text.push_str(&variable(state, id, &rest[..end])?);
            rest = &rest[end..];
            continue;
        }
        match quote {
            Some(open) if c == open => quote = None,
            None if "'\"`".contains(c) => quote = Some(c),
            _ => {}
        }
        text.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Ok(text)
}

fn variable(state: &State, id: u64, name: &str) -> Result<String, SqlError> {
    let small = name.to_lowercase();
    let Some(system) = small.strip_prefix("@@") else {
        let own = state.sessions.get(&id).and_then(|session| session.user_variables.get(&small[1..]));
        return Ok(own.map_or("NULL".to_owned(), |value| literal(value)));
    };
    let (global, plain) = match system.split_once('.') {
        Some((scope, plain)) => (scope == "global", plain),
        None => (false, system),
    };
    let value = match (global, plain) {
        (_, "gtid_executed") => Some(state.gtid_executed()),
        (true, plain) => state.variables.get(plain).cloned(),
        (false, plain) => state.variable(id, plain),
    };
    let unknown = || SqlError::new(1193, format!("Unknown system variable '{plain}'"));
    value.map(|value| literal(variables::selected(plain, &value))).ok_or_else(unknown)
}

fn literal(value: &str) -> String {
    let number = value.parse::<i64>().is_ok() && (value == "0" || !value.starts_with('0'));
    if number { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) }
}

fn database(state: &State, id: u64) -> rusqlite::Result<Connection> {
    let database = Connection::open_in_memory()?;
    for name in ["information_schema", "performance_schema", "sys", "mysql"] {
        database.execute(&format!("ATTACH ':memory:' AS {name}"), [])?;
    }
    functions(&database, state, id)?;
    for table in all(state) {
        let columns = table.columns.join(", ");
        database.execute(&format!("CREATE TABLE {} ({columns})", table.name), [])?;
        let marks = vec!["?"; table.columns.len()].join(", ");
        let insert = format!("INSERT INTO {} VALUES ({marks})", table.name);
        for row in table.rows {
            database.execute(&insert, rusqlite::params_from_iter(row))?;
        }
    }
    Ok(database)
}

fn functions(database: &Connection, state: &State, id: u64) -> rusqlite::Result<()> {
    let user =
        state.sessions.get(&id).map_or_else(String::new, |session| format!("{}@localhost", session.user));
    let number = |value: u64| i64::try_from(value).unwrap_or(0);
    let texts = [
        ("version", state.version.clone()),
        ("current_user", user.clone()),
        ("user", user),
        ("current_role", "NONE".to_owned()),
    ];
    let flags = FunctionFlags::SQLITE_UTF8;
    for (name, text) in texts {
        database.create_scalar_function(name, 0, flags, move |_| Ok(text.clone()))?;
    }
    for (name, value) in [("connection_id", id), ("ps_current_thread_id", id + THREAD)] {
        database.create_scalar_function(name, 0, flags, move |_| Ok(number(value)))?;
    }
    database.create_scalar_function("unix_timestamp", 0, flags, |_| {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Ok(i64::try_from(since.as_secs()).unwrap_or(0))
    })?;
    database.create_scalar_function("database", 0, flags, |_| Ok(None::<String>))?;
    database.create_scalar_function("ps_thread_id", 1, flags, move |context| {
        Ok(context.get::<i64>(0)? + number(THREAD))
    })?;
    database.create_scalar_function("sleep", 1, flags, |_| Ok(0_i64))
}

/// A system table: its name with the schema, its columns, its rows.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<Option<String>>>,
}

fn some(text: impl ToString) -> Option<String> {
    Some(text.to_string())
}

fn all(state: &State) -> Vec<Table> {
    let mut tables = vec![
        Table { name: "information_schema.processlist", columns: PROCESS_COLUMNS, rows: processes(state) },
        Table { name: "performance_schema.processlist", columns: PROCESS_COLUMNS, rows: processes(state) },
        threads(state),
        metadata_locks(state),
        transactions(state),
        log_status(state),
        instruments(state),
        user_privileges(state),
    ];
    for name in ["performance_schema.global_variables", "performance_schema.session_variables"] {
        let rows = state.variables.iter().map(|(name, value)| vec![some(name), some(value)]).collect();
        tables.push(Table { name, columns: &["VARIABLE_NAME TEXT", "VARIABLE_VALUE TEXT"], rows });
    }
    tables.extend(fixed(state));
    tables
}

const PROCESS_COLUMNS: &[&str] = &[
    "ID INTEGER",
    "USER TEXT",
    "HOST TEXT",
    "DB TEXT",
    "COMMAND TEXT",
    "TIME INTEGER",
    "STATE TEXT",
    "INFO TEXT",
];

fn processes(state: &State) -> Vec<Vec<Option<String>>> {
    let row = |(id, session): (&u64, &Session)| {
        let time = session.since.elapsed().as_secs();
        let (doing, info) = (some(&session.doing), session.info.clone());
        let fixed =
            [some(id), some(&session.user), some("localhost"), None, some(session.command), some(time)];
        fixed.into_iter().chain([doing, info]).collect()
    };
    state.sessions.iter().map(row).collect()
}

fn threads(state: &State) -> Table {
    let row = |(id, session): (&u64, &Session)| {
        let head = [some(id + THREAD), some("thread/sql/one_connection"), some("FOREGROUND"), some(id)];
        let time = session.since.elapsed().as_secs();
        let process = [some(session.command), some(time), some(&session.doing), session.info.clone()];
        head.into_iter().chain([some(&session.user)]).chain(process).collect()
    };
    Table {
        name: "performance_schema.threads",
        columns: &[
            "THREAD_ID INTEGER",
            "NAME TEXT",
            "TYPE TEXT",
            "PROCESSLIST_ID INTEGER",
            "PROCESSLIST_USER TEXT",
            "PROCESSLIST_COMMAND TEXT",
            "PROCESSLIST_TIME INTEGER",
            "PROCESSLIST_STATE TEXT",
            "PROCESSLIST_INFO TEXT",
        ],
        rows: state.sessions.iter().map(row).collect(),
    }
}

fn metadata_locks(state: &State) -> Table {
    let mut rows = vec![];
    let sessions = state.sessions.iter().filter(|_| state.metadata_locks);
    for (id, session) in sessions {
        let scoped = [
            ("GLOBAL", session.global, session.writes),
            ("COMMIT", session.commit, session.commits),
            ("BACKUP LOCK", session.backup, session.defines),
        ];
        for table in &session.uses {
            let (schema, name) = table.split_once('.').unwrap_or(("", table));
            let kind = if session.writes { "SHARED_WRITE" } else { "SHARED_READ" };
            let values = ["TABLE", schema, name, kind, "TRANSACTION", "GRANTED"].map(some);
            rows.push(values.into_iter().chain([some(id + THREAD)]).collect());
        }
        for (object, asked, intends) in scoped {
            let status = if asked == Asked::Held { "GRANTED" } else { "PENDING" };
            let mut lock = |kind: &str, duration: &str, status: &str| {
                let ends = [some(kind), some(duration), some(status), some(id + THREAD)];
                rows.push([some(object), None, None].into_iter().chain(ends).collect());
            };
            if asked != Asked::No {
                lock("SHARED", "EXPLICIT", status);
            }
            if intends {
                lock("INTENTION_EXCLUSIVE", "STATEMENT", "GRANTED");
            }
        }
    }
    Table {
        name: "performance_schema.metadata_locks",
        columns: &[
            "OBJECT_TYPE TEXT",
            "OBJECT_SCHEMA TEXT",
            "OBJECT_NAME TEXT",
            "LOCK_TYPE TEXT",
            "LOCK_DURATION TEXT",
            "LOCK_STATUS TEXT",
            "OWNER_THREAD_ID INTEGER",
        ],
        rows,
    }
}

fn transactions(state: &State) -> Table {
    let open = state.sessions.iter().filter(|(_, session)| session.in_transaction);
    Table {
        name: "information_schema.innodb_trx",
        columns: &["trx_id INTEGER", "trx_state TEXT", "trx_mysql_thread_id INTEGER", "trx_query TEXT"],
        rows: open
            .map(|(id, session)| vec![some(id + 1000), some("RUNNING"), some(id), session.info.clone()])
            .collect(),
    }
}

fn log_status(state: &State) -> Table {
    let local = serde_json::json!({
        "gtid_executed": state.gtid_executed(),
        "binary_log_file": state.binlog.0,
        "binary_log_position": state.binlog.1,
    });
    let channels: Vec<_> = state
        .channels
        .iter()
        .map(|channel| serde_json::json!({"channel_name": channel.name, "relay_log_file": "relay.000002"}))
        .collect();
    let replication = serde_json::json!({ "channels": channels });
    let engines = serde_json::json!({"InnoDB": {"LSN": 19_000_000, "LSN_checkpoint": 18_000_000}});
    let uuid = some(&state.variables["server_uuid"]);
    Table {
        name: "performance_schema.log_status",
        columns: &["SERVER_UUID TEXT", "LOCAL TEXT", "REPLICATION TEXT", "STORAGE_ENGINES TEXT"],
        rows: vec![vec![uuid, some(local), some(replication), some(engines)]],
    }
}

fn instruments(state: &State) -> Table {
    let enabled = if state.metadata_locks { "YES" } else { "NO" };
    Table {
        name: "performance_schema.setup_instruments",
        columns: &["NAME TEXT", "ENABLED TEXT", "TIMED TEXT"],
        rows: vec![vec![some("wait/lock/metadata/sql/mdl"), some(enabled), some(enabled)]],
    }
}

fn user_privileges(state: &State) -> Table {
    let names = state.grants.iter().filter_map(|grant| grant.strip_prefix("GRANT ")?.split_once(" ON *.*"));
    let names = names.flat_map(|(names, _)| names.split(", "));
    let row = |name: &str| vec![some("'root'@'localhost'"), some("def"), some(name), some("YES")];
    Table {
        name: "information_schema.user_privileges",
        columns: &["GRANTEE TEXT", "TABLE_CATALOG TEXT", "PRIVILEGE_TYPE TEXT", "IS_GRANTABLE TEXT"],
        rows: names.map(row).collect(),
    }
}

/// What never changes.
fn fixed(state: &State) -> Vec<Table> {
    let row = |values: &[&str]| values.iter().map(some).collect::<Vec<_>>();
    let user_tables = state.user_tables.iter();
    let user_tables = user_tables.map(|(schema, name, engine)| {
        [row(&["def", schema, name, "BASE TABLE", engine]), row(&["10", "16384", "0", "", "t"])].concat()
    });
    vec![
        Table {
            name: "information_schema.tables",
            columns: &[
                "TABLE_CATALOG TEXT",
                "TABLE_SCHEMA TEXT",
                "TABLE_NAME TEXT",
                "TABLE_TYPE TEXT",
                "ENGINE TEXT",
                "TABLE_ROWS INTEGER",
                "DATA_LENGTH INTEGER",
                "INDEX_LENGTH INTEGER",
                "CREATE_OPTIONS TEXT",
                "TABLE_COMMENT TEXT",
            ],
            rows: user_tables.collect(),
        },
        Table {
            name: "information_schema.engines",
            columns: &["ENGINE TEXT", "SUPPORT TEXT", "TRANSACTIONS TEXT", "XA TEXT", "SAVEPOINTS TEXT"],
            rows: vec![
                row(&["InnoDB", "DEFAULT", "YES", "YES", "YES"]),
                row(&["MyISAM", "YES", "NO", "NO", "NO"]),
                row(&["CSV", "YES", "NO", "NO", "NO"]),
            ],
        },
        Table {
            name: "information_schema.schemata",
            columns: &["SCHEMA_NAME TEXT"],
            rows: [row(&["mysql"]), row(&["performance_schema"]), row(&["app"])].to_vec(),
        },
        Table {
            name: "information_schema.plugins",
            columns: &["PLUGIN_NAME TEXT", "PLUGIN_STATUS TEXT", "PLUGIN_TYPE TEXT", "PLUGIN_LIBRARY TEXT"],
            rows: vec![vec![some("InnoDB"), some("ACTIVE"), some("STORAGE ENGINE"), None]],
        },
        Table {
            name: "information_schema.innodb_datafiles",
            columns: &["SPACE INTEGER", "PATH TEXT"],
            rows: vec![row(&["2", "./app/t.ibd"])],
        },
        Table {
            name: "information_schema.files",
            columns: &[
                "FILE_ID INTEGER",
                "FILE_NAME TEXT",
                "FILE_TYPE TEXT",
                "TABLESPACE_NAME TEXT",
                "ENGINE TEXT",
            ],
            rows: state.files.iter().map(|(name, kind)| row(&["2", name, kind, "t", "InnoDB"])).collect(),
        },
        Table {
            name: "performance_schema.keyring_component_status",
            columns: &["STATUS_KEY TEXT", "STATUS_VALUE TEXT"],
            rows: state.keyring.iter().map(|file| row(&["Data_file", file])).collect(),
        },
    ]
}

/// `SHOW …`; `None` if it is no statement of this server.
pub(super) fn show(state: &State, id: u64, statement: &str) -> Option<Answer> {
    let what = statement.get(5..)?.trim();
    let is = |words: &str| sql::begins(what, words);
    let new_words = state.number() >= (8, 2, 0);
    let no_old_words = state.number() >= (8, 4, 0);
    if ["GLOBAL VARIABLES", "SESSION VARIABLES", "VARIABLES"].iter().any(|words| is(words)) {
        return Some(show_variables(state, id, what));
    }
    if ["GLOBAL STATUS", "SESSION STATUS", "STATUS"].iter().any(|words| is(words)) {
        let uptime = state.started.elapsed().as_secs();
        let rows = vec![vec![some("Uptime"), some(uptime)]];
        return Some(filtered(Rows { rows, ..Rows::of(&["Variable_name", "Value"]) }, what));
    }
    if is("GRANTS") {
        let rows = state.grants.iter().map(|grant| vec![some(grant)]).collect();
        return Some(Ok(Rows { rows, ..Rows::of(&["Grants for root@localhost"]) }));
    }
    if is("BINARY LOG STATUS") && new_words || is("MASTER STATUS") && !no_old_words {
        return Some(Ok(binary_log_status(state)));
    }
    if is("REPLICA STATUS") {
        return Some(Ok(replica_status(state, "Source", "Replica")));
    }
    if is("SLAVE STATUS") && !no_old_words {
        return Some(Ok(replica_status(state, "Master", "Slave")));
    }
    if is("PROCESSLIST") || is("FULL PROCESSLIST") {
        let columns = ["Id", "User", "Host", "db", "Command", "Time", "State", "Info"];
        return Some(Ok(Rows { rows: processes(state), ..Rows::of(&columns) }));
    }
    match what.to_uppercase().split(' ').next()? {
        "ENGINES" => Some(select(state, id, "SELECT * FROM information_schema.engines")),
        "PLUGINS" => Some(select(state, id, "SELECT * FROM information_schema.plugins")),
        "WARNINGS" => Some(Ok(Rows::of(&["Level", "Code", "Message"]))),
        "DATABASES" => {
            Some(select(state, id, "SELECT SCHEMA_NAME AS Database FROM information_schema.schemata"))
        }
        _ => None,
    }
}

fn show_variables(state: &State, id: u64, what: &str) -> Answer {
    let global = sql::begins(what, "GLOBAL");
    let value =
        |name: &String| if global { state.variables.get(name).cloned() } else { state.variable(id, name) };
    let rows = state.variables.keys().map(|name| vec![some(name), value(name)]).collect();
    filtered(Rows { rows, ..Rows::of(&["Variable_name", "Value"]) }, what)
}

/// The rows that a `LIKE` or `WHERE` leaves.
fn filtered(all: Rows, what: &str) -> Answer {
    let database = Connection::open_in_memory().map_err(|error| told(&error))?;
    let fill = || -> rusqlite::Result<()> {
        database.execute("CREATE TABLE shown (Variable_name TEXT, Value TEXT)", [])?;
        for row in &all.rows {
            database.execute("INSERT INTO shown VALUES (?, ?)", rusqlite::params_from_iter(row))?;
        }
        Ok(())
    };
    fill().map_err(|error| told(&error))?;
    let capital = what.to_uppercase();
    let condition = match (capital.find(" LIKE "), capital.find(" WHERE ")) {
        (_, Some(at)) => what[at..].to_owned(),
        (Some(at), None) => format!(" WHERE Variable_name{} ESCAPE '\\'", &what[at..]),
        (None, None) => String::new(),
    };
    let question = format!("SELECT * FROM shown{condition} ORDER BY 1");
    ask(&database, &question).map_err(|error| told(&error))
}

fn binary_log_status(state: &State) -> Rows {
    let columns = ["File", "Position", "Binlog_Do_DB", "Binlog_Ignore_DB", "Executed_Gtid_Set"];
    let mut rows = Rows::of(&columns);
    if state.variables["log_bin"] == "ON" {
        let (file, position) = &state.binlog;
        let values = [file, &position.to_string(), "", "", &state.gtid_executed()].map(some);
        rows.rows.push(values.to_vec());
    }
    rows
}

fn replica_status(state: &State, source: &str, replica: &str) -> Rows {
    let names = [
        format!("{source}_Host"),
        format!("{source}_Port"),
        format!("Relay_{source}_Log_File"),
        format!("Exec_{source}_Log_Pos"),
        format!("{replica}_SQL_Running"),
        "Channel_Name".to_owned(),
        "Executed_Gtid_Set".to_owned(),
    ];
    let row = |channel: &super::Channel| {
        let applies = if channel.applies { "Yes" } else { "No" };
        let (file, position) = &channel.executed;
        let head = [some(&channel.host), some(3306), some(file), some(position), some(applies)];
        head.into_iter().chain([some(&channel.name), some(state.gtid_executed())]).collect()
    };
    Rows { columns: names.to_vec(), rows: state.channels.iter().map(row).collect() }
}
