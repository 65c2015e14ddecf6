"""`python -m evopress.run`: compose the configuration and run the job."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from evopress.config import CONFIG_FOLDER, ConfigError, build, suggestions, with_one_voice, with_resume
from evopress.runtime import signals

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def compress(cfg: DictConfig) -> None:
    signals.listen()  # main did already, but not in the workers of a sweep's launcher
    folder = Path(cfg.resume or HydraConfig.get().runtime.output_dir)
    try:
        from evopress.pipeline import run_job  # takes seconds, which a misspelled key need not cost
        from evopress.runtime import distributed

        signals.raise_if_interrupted()
        distributed.join()
        folder = distributed.from_first(lambda: folder)
        run_job(build(cfg, folder))
    except (Exception, KeyboardInterrupt) as error:
        if signals.was_interrupted():
            log.warning("interrupted; go on with: python -m evopress.run resume=%s", folder)
        elif isinstance(error, OSError):
            log.error("%s; once that is mended, go on with: python -m evopress.run resume=%s", error, folder)
        elif isinstance(error, (ConfigError, ValueError)):
            log.error("%s", error)
        else:
            raise
        log.debug("where it was raised:", exc_info=True)
        sys.exit(130 if signals.was_interrupted() else 2)


def main() -> None:
    signals.listen()
    sys.argv[1:] = with_one_voice(with_resume(sys.argv[1:]))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here; Hydra would print a traceback of a folder it cannot make
    logging.raiseExceptions = False  # nor is there one of a log that a full disk does not take
    try:
        compress()
    except KeyboardInterrupt:  # before there is anything to go on with
        sys.exit(130)
    except CompactHydraException as error:  # the configuration could not be composed
        cause = [error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else []
        print(error, *cause, *suggestions(sys.argv[1:]), sep="\n", file=sys.stderr)
        sys.exit(1)
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__  # logging wraps it
        if not isinstance(reason, OSError):
            raise
        sys.exit(f"the run folder cannot be written ({reason}): set outputs or hydra.run.dir to one that can")


if __name__ == "__main__":
    main()
