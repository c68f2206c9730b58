//! An answer that somebody waits for.

/// Who is told what came of a job. If that is dropped, or panics, nothing came of it: the default.
pub(super) struct Answer<T: Default>(Option<Box<dyn FnOnce(T) + Send>>);

impl<T: Default> Answer<T> {
    pub(super) fn new(done: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Some(Box::new(done)))
    }

    pub(super) fn give(mut self, value: T) {
        if let Some(done) = self.0.take() {
            done(value);
        }
    }
}

impl<T: Default> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(T::default());
        }
    }
}
