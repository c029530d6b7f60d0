//! Option files as people have them.
//!
//! Crash story: temporary files only.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use model::server::{Flavor, ServerAccess, ServerAddress};

use super::{Credentials, Line, credentials, read_option_file};

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read(text: &str) -> Credentials {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.cnf");
    write(&path, text, 0o600);
    read_option_file(&path).unwrap_or_else(|error| panic!("{error}"))
}

fn password(text: &str) -> String {
    read(&format!("[client]\npassword={text}\n")).password.unwrap().reveal().to_owned()
}

#[test]
fn groups_of_clients_count_and_the_last_word_does() {
    let found = read(
        "# debian.cnf\n[mysqld]\nuser=mysql\nport=1\n[client]\nuser = root\nhost=a\n; more\n[ client-mariadb ]\n\
         host = b\nport=3307\nsocket\t=  /run/s  \nssl_ca=/ca.pem\n[mysqldump]\nuser=x\n",
    );
    assert_eq!(found.user.as_deref(), Some("root"));
    assert_eq!((found.host.as_deref(), found.port), (Some("b"), Some(3307)));
    assert_eq!(found.socket.as_deref(), Some(Path::new("/run/s")));
    assert_eq!(found.tls_ca.as_deref(), Some(Path::new("/ca.pem")));
    assert!(found.password.is_none());
}

#[test]
fn quotes_comments_and_escapes_are_those_of_mariadb() {
    assert_eq!(password("plain"), "plain");
    assert_eq!(password("  with blanks  "), "with blanks");
    assert_eq!(password("cut#here"), "cut");
    assert_eq!(password("\"not#here\" # but here"), "not#here");
    assert_eq!(password("' a \"b\" '"), " a \"b\" ");
    assert_eq!(password(r##""a\"#b""##), "a\"#b");
    assert_eq!(password(r"a\sb\\c\xd\te"), "a b\\c\\xd\te");
    assert_eq!(password("a=b=c"), "a=b=c");
    assert_eq!(password(r"end\"), r"end\");
    assert_eq!(password("it's"), "it's");
}

#[test]
fn included_files_are_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("conf.d")).unwrap();
    write(&at("conf.d/b.cnf"), "[client]\nuser=b\n", 0o644);
    write(&at("conf.d/a.cnf"), "[client]\nuser=a\nhost=h\n", 0o644);
    write(&at("conf.d/c.txt"), "[client]\nuser=c\n", 0o644);
    write(&at("more"), "[client]\npassword=secret\n", 0o600);
    let includes = format!("!includedir {}\n!include {}\n", at("conf.d").display(), at("more").display());
    write(&at("my.cnf"), &includes, 0o600);
    let found = read_option_file(&at("my.cnf")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((found.user.as_deref(), found.host.as_deref()), (Some("b"), Some("h")));
    assert_eq!(found.password.unwrap().reveal(), "secret");
    write(&at("circle"), &format!("!include {}\n", at("circle").display()), 0o600);
    let error = read_option_file(&at("circle")).err().unwrap().to_string();
    assert!(error.contains("in a circle"), "{error}");
}

#[test]
fn lines_that_cannot_be_understood_are_named_and_not_quoted() {
    for (text, said) in [
        ("password=secret\n", "line 1 stands before the first [group]"),
        ("[client\n", "line 1 has no closing bracket"),
        ("[client]\nport=secret\n", "line 2 has a port that is no number"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my.cnf");
        write(&path, text, 0o600);
        let error = read_option_file(&path).err().unwrap().to_string();
        assert!(error.contains(said) && !error.contains("secret"), "{error}");
    }
    assert_eq!(Line::parse("!nonsense x").unwrap(), Line::Nothing);
    assert_eq!(Line::parse("skip-ssl").unwrap(), Line::Option("skip-ssl".into(), None));
}

#[test]
fn what_others_can_read_is_refused_if_it_holds_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let (cnf, pass) = (dir.path().join("my.cnf"), dir.path().join("password"));
    write(&cnf, "[client]\nuser=backup\n", 0o644);
    write(&pass, "secret\nnot this\n", 0o640);
    let address = ServerAddress::Socket("/s".into());
    let mut access = ServerAccess {
        flavor: Flavor::MariaDb,
        address,
        user: None,
        password_file: Some(pass.clone()),
        option_file: Some(cnf.clone()),
        tls_ca: None,
    };
    let error = credentials(&access).err().unwrap().to_string();
    assert!(error.ends_with("password holds a password and others can read it"), "{error}");
    write(&pass, "secret\nnot this\n", 0o600);
    let found = credentials(&access).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((found.user.as_deref(), found.password.unwrap().reveal()), (Some("backup"), "secret"));
    write(&cnf, "[client]\nuser=backup\npassword=other\n", 0o644);
    let error = credentials(&access).err().unwrap().to_string();
    assert!(error.contains("my.cnf holds a password"), "{error}");
    write(&cnf, "[client]\npassword=other\n", 0o600);
    access.password_file = None;
    access.user = Some("me".into());
    let found = credentials(&access).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((found.user.as_deref(), found.password.unwrap().reveal()), (Some("me"), "other"));
    write(&pass, "\n", 0o600);
    access.password_file = Some(pass);
    assert!(credentials(&access).is_err());
}
