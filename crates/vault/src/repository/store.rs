//! (being written)
use super::{error::RepositoryError, open::Repository};
/// session
pub(super) struct Session;
impl Repository {
    pub(crate) fn end_session(&mut self) -> Result<(), RepositoryError> {
        self.session = None;
        Ok(())
    }
}
