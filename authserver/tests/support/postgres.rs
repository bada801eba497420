//! A PostgreSQL server of the tests' own, without a port, gone when they are.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The server, and the programs of the installation that it is from.
struct Postgres {
    sockets: PathBuf,
    /// Held for its standard input: its end tells the guard that we are gone, however we went.
    _guard: Child,
}

static SERVER: OnceLock<Option<Postgres>> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The address of a new, empty database.
pub async fn database() -> String {
    let server = SERVER.get_or_init(Postgres::start).as_ref();
    let server = server.expect("PostgreSQL is installed; run scripts/setup test");
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::SeqCst));
    use sqlx::{AssertSqlSafe, Connection, Executor};
    let mut connection = sqlx::PgConnection::connect(&server.url("postgres")).await.unwrap();
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    connection.close().await.unwrap();
    server.url(&name)
}

impl Postgres {
    fn url(&self, name: &str) -> String {
        format!("postgres://dormouse@localhost/{name}?host={}", self.sockets.display())
    }

    fn start() -> Option<Self> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("dormouse-pg-").tempdir().unwrap().keep();
        let data = folder.join("data");
        let user = unprivileged(&folder);
        initialise(&programs, &data, user.as_deref());
        // What is tested is us and not the disk: nothing is flushed.
        let settings = "listen_addresses = ''\nfsync = off\nmax_connections = 300\n\
                        shared_buffers = 32MB\n";
        let sockets = format!("unix_socket_directories = '{}'\n", folder.display());
        let mut file =
            fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        file.write_all(sockets.as_bytes()).unwrap();
        let postgres = as_user(user.as_deref(), &programs.join("postgres"));
        let mut guard = Command::new("sh");
        // Reads until we are gone, then stops the server and takes everything away.
        guard
            .arg("-c")
            .arg(
                "folder=$1; shift; \"$@\" </dev/null >\"$folder/log\" 2>&1 & server=$!\n\
                 echo started; read line; kill -QUIT $server; wait $server; rm -rf \"$folder\"",
            )
            .arg("guard")
            .arg(&folder)
            .arg(postgres.get_program())
            .args(postgres.get_args())
            .arg("-D")
            .arg(&data);
        let mut guard = guard
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        guard.stdout.take().unwrap().read_exact(&mut [0; 8]).unwrap();
        wait_until_ready(&folder);
        Some(Self { sockets: folder, _guard: guard })
    }
}

/// Fills a new data folder: with a copy of what `initdb` once made, because it takes seconds to make,
/// and each test may be a process of its own.
fn initialise(programs: &Path, data: &Path, user: Option<&str>) {
    let copy = |from: &Path, to: &Path| {
        Command::new("cp")
            .arg("-a")
            .args([from, to])
            .output()
            .is_ok_and(|done| done.status.success())
    };
    let version = Command::new(programs.join("postgres")).arg("--version").output().unwrap();
    let version =
        String::from_utf8_lossy(&version.stdout).replace(|c: char| !c.is_alphanumeric(), "-");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(version);
    if kept.exists() && copy(&kept, data) {
        return;
    }
    let made = as_user(user, &programs.join("initdb"))
        .args(["--auth=trust", "--username=dormouse", "--no-sync", "--encoding=UTF8"])
        .args(["--locale=C", "--wal-segsize=1", "-D"])
        .arg(data)
        .current_dir(data.parent().unwrap())
        .output()
        .unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    // Several do this at once: whoever is last to rename finds a whole one there, and leaves it.
    let ours = kept.with_extension(std::process::id().to_string());
    if !copy(data, &ours) || fs::rename(&ours, &kept).is_err() {
        let _ = fs::remove_dir_all(&ours);
    }
}

fn wait_until_ready(folder: &Path) {
    let pid_file = folder.join("data/postmaster.pid");
    for _ in 0..3000 {
        // Its eighth line, once the server takes connections.
        if fs::read_to_string(&pid_file).is_ok_and(|text| text.contains("ready")) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    panic!("PostgreSQL does not start: {log}");
}

/// The folder of `initdb` and `postgres`.
fn programs() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    folders.push("/usr/local/bin".into());
    // Debian keeps them apart by version: the newest that is there.
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}

/// PostgreSQL refuses to run as root: then it is somebody else who owns the folder.
fn unprivileged(folder: &Path) -> Option<String> {
    if fs::metadata("/proc/self").is_ok_and(|me| me.uid() != 0) {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let account = |name: &str| {
        let line = passwd.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let (uid, gid): (u32, u32) = account("postgres").or_else(|| account("nobody")).unwrap();
    chown(folder, Some(uid), Some(gid)).unwrap();
    Some(format!("{uid}:{gid}"))
}

fn as_user(user: Option<&str>, program: &Path) -> Command {
    let Some((uid, gid)) = user.and_then(|user| user.split_once(':')) else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", uid, "--regid", gid, "--clear-groups"]).arg(program);
    command
}
