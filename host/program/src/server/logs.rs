//! The two logs of a server: what the configuration has them written to is opened before it is active, and
//! opened again when an operator has renamed the files.

use std::io;
use std::path::Path;

use pointsman_config::{AccessLogTarget, Config, Problem};
use pointsman_log::ErrorLog;
use pointsman_log::output::{self, Output};
use pointsman_log::writer::LogWriter;

const ERROR_LOG: &str = "error_log.file";
const ACCESS_LOG: &str = "access_log";

/// Both logs.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) error: ErrorLog,
    pub(super) access: LogWriter,
}

/// What was opened for a configuration. None: a log stays where it is.
pub(super) struct Outputs {
    error: Option<Box<dyn Output>>,
    access: Option<Box<dyn Output>>,
}

/// Opens what a configuration wants where that differs from `old`. May block.
///
/// # Errors
/// All that cannot be opened.
pub(super) fn open(new: &Config, old: Option<&Config>) -> Result<Outputs, Vec<Problem>> {
    let error = old.is_none_or(|old| old.error_log != new.error_log);
    let error = error.then(|| open_error_log(new)).transpose();
    let access = old.is_none_or(|old| old.access_log != new.access_log);
    let access = access.then(|| open_access_log(new)).transpose();
    match (error, access) {
        (Ok(error), Ok(access)) => Ok(Outputs { error, access }),
        (error, access) => Err(error.err().into_iter().chain(access.err()).collect()),
    }
}

/// Opens the files of a configuration that is active; what cannot be opened is told beside. May block.
pub(super) fn reopen(config: &Config) -> (Outputs, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut opened = |output: Result<_, Problem>| output.map_err(|p| problems.push(p)).ok();
    let error = config.error_log.file.as_ref();
    let error = error.and_then(|_| opened(open_error_log(config)));
    let access = config.access_log.file();
    let access = access.and_then(|_| opened(open_access_log(config)));
    (Outputs { error, access }, problems)
}

/// All that [`open`] would not be able to open. Makes no file. May block.
pub(super) fn check(new: &Config, old: Option<&Config>) -> Vec<Problem> {
    let error = old.is_none_or(|old| old.error_log != new.error_log);
    let access = old.is_none_or(|old| old.access_log != new.access_log);
    let files = [
        (ERROR_LOG, new.error_log.file.as_deref().filter(|_| error)),
        (ACCESS_LOG, new.access_log.file().filter(|_| access)),
    ];
    let wrong = |(key, file): (&str, Option<&Path>)| {
        let error = output::check_file(file?).err()?;
        Some(problem(key, file, &error))
    };
    files.into_iter().filter_map(wrong).collect()
}

impl Logs {
    /// Begins to write the access log to what was opened, and has the error log go on there.
    ///
    /// # Errors
    /// There is no room for another thread.
    pub(super) fn start(error: ErrorLog, config: &Config, opened: Outputs) -> io::Result<Self> {
        let access = LogWriter::start("access_log", output::nowhere())?;
        let logs = Self { error, access };
        logs.redirect(config, opened);
        Ok(logs)
    }

    /// Goes on in what was opened for this configuration.
    pub(super) fn redirect(&self, config: &Config, opened: Outputs) {
        if let Some(output) = opened.error {
            self.error.redirect(&config.error_log, output);
        }
        if let Some(output) = opened.access {
            self.access.redirect(output);
        }
    }
}

impl Outputs {
    /// Leaves out what was opened for other settings than those of this configuration.
    pub(super) fn only_for(self, opened_for: &Config, config: &Config) -> Self {
        Self {
            error: self
                .error
                .filter(|_| opened_for.error_log == config.error_log),
            access: self
                .access
                .filter(|_| opened_for.access_log == config.access_log),
        }
    }

    /// Whether there is anything.
    pub(super) fn is_empty(&self) -> bool {
        self.error.is_none() && self.access.is_none()
    }
}

fn open_error_log(config: &Config) -> Result<Box<dyn Output>, Problem> {
    let settings = &config.error_log;
    ErrorLog::open(settings).map_err(|error| problem(ERROR_LOG, settings.file.as_deref(), &error))
}

fn open_access_log(config: &Config) -> Result<Box<dyn Output>, Problem> {
    let target = &config.access_log;
    let opened = match target {
        AccessLogTarget::Stdout => output::stdout(),
        AccessLogTarget::File(path) => output::file(path),
        AccessLogTarget::Off => Ok(output::nowhere()),
    };
    opened.map_err(|error| problem(ACCESS_LOG, target.file(), &error))
}

fn problem(key: &str, file: Option<&Path>, error: &io::Error) -> Problem {
    let what = file.map_or("the stream".into(), |file| file.display().to_string());
    Problem {
        key: key.to_owned(),
        line: None,
        message: format!("cannot open {what}: {error}"),
    }
}
