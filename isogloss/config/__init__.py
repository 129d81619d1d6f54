"""Settings: strict, frozen, self-documenting pydantic models that round-trip to YAML. Imports no torch."""

# ruff: noqa: F401  # these imports are the public names

from isogloss.config.base import Count, Positive, Settings, home
from isogloss.config.data import (
    AnySource,
    ChatFile,
    DemoData,
    FileData,
    MassiveData,
    MlqaData,
    ParallelFile,
    ParallelText,
    PawsxData,
    Sib200Data,
    TableFile,
    TopicData,
    XnliData,
)
from isogloss.config.distill import (
    KL_ONLY,
    SIMILARITY_ONLY,
    Adapter,
    Distill,
    Endpoint,
    ModelTeacher,
    SelfTeacher,
    ServerTeacher,
)
from isogloss.config.evaluate import Evaluate, ParallelSuite, Translation, Xglue
from isogloss.config.load import load_config, refuse_shared, run_folder_of, with_overrides
from isogloss.config.paths import root_of_environment
from isogloss.config.schema import Config, Tracker
from isogloss.config.tune import Tune
from isogloss.config.yaml_io import dump_config, parse_config
