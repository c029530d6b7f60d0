//! What only MySQL tells: since 8.0 no `.isl` file leads to tablespaces outside the data directory, the data dictionary
//! names them.
//!
//! Crash story: reads only.

use std::path::{Path, PathBuf};

use model::server::RootRole;

use super::{
    super::{PATIENCE, connect::Connection, error::ServerError},
    variables::Variables,
};

/// Directories, and files of keys, that neither variables of MariaDB's names nor links lead to.
pub(super) fn places(
    connection: &mut Connection,
    variables: &Variables,
) -> Result<Vec<(RootRole, PathBuf)>, ServerError> {
    let mut found = tablespaces(connection, variables)?;
    // A relative one is below the data directory.
    let doublewrite = variables.get("innodb_doublewrite_dir").map(PathBuf::from);
    found.extend(doublewrite.filter(|dir| dir.is_absolute()).map(|dir| (RootRole::SystemTablespace, dir)));
    found.extend(keyring(connection, variables)?.map(|file| (RootRole::Keyring, file)));
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found.dedup();
    Ok(found)
}

/// Where tablespaces outside the data directory are,
/// <https://dev.mysql.com/doc/refman/8.0/en/information-schema-files-table.html>.
fn tablespaces(
    connection: &mut Connection,
    variables: &Variables,
) -> Result<Vec<(RootRole, PathBuf)>, ServerError> {
    let sql = "SELECT FILE_NAME, FILE_TYPE FROM information_schema.FILES WHERE FILE_TYPE <> 'TEMPORARY' AND FILE_NAME \
               IS NOT NULL";
    let data = variables.path("datadir").unwrap_or_default();
    let mut found = vec![];
    for row in connection.rows(sql, PATIENCE)? {
        let file = variables.place(&row.text(0));
        let role = if row.text(1) == "UNDO LOG" { RootRole::Undo } else { RootRole::External };
        if let (false, Some(dir)) = (file.starts_with(&data), file.parent()) {
            found.push((role, dir.to_owned()));
        }
    }
    Ok(found)
}

/// The file of keys of a component, or of the older plugin.
fn keyring(connection: &mut Connection, variables: &Variables) -> Result<Option<PathBuf>, ServerError> {
    let sql =
        "SELECT STATUS_VALUE FROM performance_schema.keyring_component_status WHERE STATUS_KEY = 'Data_file'";
    let of_component = match connection.value(sql, PATIENCE) {
        // Without the performance schema, or before 8.0.24.
        Err(error) if error.code().is_some() => None,
        other => other?,
    };
    let named = of_component.or_else(|| variables.get("keyring_file_data").map(str::to_owned));
    Ok(named.filter(|file| Path::new(file).is_absolute()).map(PathBuf::from))
}
