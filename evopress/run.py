"""`python -m evopress.run`: composes the configuration and runs the job."""

import logging
import os
import sys
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evopress.arguments import (
    expand_resume,
    folder_name,
    quiet_unless_first,
    start_folder,
    suggest_quotes,
    with_home,
)
from evopress.config import CONFIG_FOLDER, ConfigError, build_job, check_resumed, suggest_keys, suggest_options
from evopress.runtime import signals

log = logging.getLogger(__name__)


class JobFailedError(Exception):
    """A job of a sweep failed. Its error is already logged, and the other jobs continue."""


# Registered on import, because the worker processes of a sweep's launcher import this module but do not call `main`.
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("with_home", with_home, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def compress(cfg: DictConfig) -> None:
    """Run the job of a configuration. A known error ends the process with one message and code 2, a signal with 130.

    In a sweep, an error raises JobFailedError instead. Hydra keeps it until all jobs are done.
    """
    signals.listen()  # again, for the worker processes of a sweep's launcher, which do not call main
    folder = Path(cfg.resume or HydraConfig.get().runtime.output_dir).absolute()
    try:
        from evopress.pipeline import run_job  # takes seconds, so Hydra checks the keys first
        from evopress.runtime import distributed

        signals.raise_if_interrupted()
        distributed.join()
        folder = distributed.from_first(lambda: folder)
        if cfg.resume:
            _prepare_resumed(cfg, folder)
        run_job(build_job(cfg, folder))
    except (Exception, KeyboardInterrupt) as error:
        if signals.was_interrupted():
            log.warning("interrupted; continue with: python -m evopress.run resume=%s", folder)
        elif isinstance(error, OSError):
            log.error("%s; once that is fixed, continue with: python -m evopress.run resume=%s", error, folder)
        elif isinstance(error, (ConfigError, ValueError)):
            log.error("%s", error)
        else:
            raise
        log.debug("the error was raised here:", exc_info=True)
        if HydraConfig.get().mode == RunMode.MULTIRUN and not signals.was_interrupted():
            raise JobFailedError(str(error)) from error
        sys.exit(130 if signals.was_interrupted() else 2)


def _prepare_resumed(cfg: DictConfig, folder: Path) -> None:
    """Change to the folder where the run was started, because relative paths start there.

    Raises ConfigError if the saved settings would run code from outside evopress that this command does not name.
    """
    hydra_cfg = HydraConfig.get()
    config_dirs = [source.path for source in hydra_cfg.runtime.config_sources if source.provider == "command-line"]
    check_resumed(cfg, overrides=hydra_cfg.overrides.task, config_dirs=config_dirs)
    started_in = start_folder(folder)
    if started_in is None or started_in == Path.cwd():
        return
    if started_in.is_dir():
        log.info("relative paths start from %s, where this run was started", started_in)
        os.chdir(started_in)
    else:
        log.warning(
            "this run was started in %s, which does not exist: relative paths start from %s", started_in, Path.cwd()
        )


def main() -> None:
    """The entry point. Ends the process with code 130 after a signal, and with 1 if the configuration is wrong."""
    signals.listen()
    sys.argv[1:] = quiet_unless_first(expand_resume(sys.argv[1:]))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing some of them
    logging.raiseExceptions = False  # no traceback if the disk is too full for a log line
    try:
        compress()
    except KeyboardInterrupt:  # before there is a run to resume
        sys.exit(130)
    except JobFailedError as error:  # perhaps it was logged in a worker process only
        print(f"a job of the sweep failed: {error}", file=sys.stderr)
        sys.exit(2)
    except CompactHydraException as error:  # the configuration could not be composed
        cause = [error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else []
        hints = [*suggest_keys(sys.argv[1:]), *suggest_quotes(sys.argv[1:])]
        print(error, *cause, *hints, sep="\n", file=sys.stderr)
        sys.exit(1)
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__  # logging wraps an OSError in a ValueError
        if isinstance(reason, OSError):
            sys.exit(f"the run folder cannot be written ({reason}): set outputs or hydra.run.dir to a writable folder")
        hints = suggest_options(sys.argv[1:])
        if not hints:
            raise
        print(error, *hints, sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    # main of the module evopress.run, not of __main__: launchers send the name of the module to their worker processes.
    import_module("evopress.run").main()
