"""The published figures: the tables of the MiniRBT README (github.com/iflytek/MiniRBT), dev sets, as printed there.

Each table maps a model to its tasks, and a task to its metrics. A figure is the published text ("68", not "68.0").
"""

Figures = dict[str, dict[str, dict[str, str]]]  # model -> task -> metric -> percent

# The figures of each model.
PUBLISHED: Figures = {
    "RoBERTa": {
        "cmrc2018": {"f1": "87.3", "em": "68"},
        "drcd": {"f1": "94.4", "em": "89.4"},
        "ocnli": {"accuracy": "76.58"},
        "lcqmc": {"accuracy": "89.07"},
        "bq": {"accuracy": "85.76"},
        "tnews": {"accuracy": "57.66"},
        "chnsenticorp": {"accuracy": "94.89"},
    },
    "RBT6 (KD)": {
        "cmrc2018": {"f1": "84.4", "em": "64.3"},
        "drcd": {"f1": "91.27", "em": "84.93"},
        "ocnli": {"accuracy": "72.83"},
        "lcqmc": {"accuracy": "88.52"},
        "bq": {"accuracy": "84.54"},
        "tnews": {"accuracy": "55.52"},
        "chnsenticorp": {"accuracy": "93.42"},
    },
    "RBT3": {
        "cmrc2018": {"f1": "80.3", "em": "57.73"},
        "drcd": {"f1": "85.87", "em": "77.63"},
        "ocnli": {"accuracy": "69.80"},
        "lcqmc": {"accuracy": "87.3"},
        "bq": {"accuracy": "84.47"},
        "tnews": {"accuracy": "55.39"},
        "chnsenticorp": {"accuracy": "93.86"},
    },
    "RBT4-H312": {
        "cmrc2018": {"f1": "77.9", "em": "54.93"},
        "drcd": {"f1": "84.13", "em": "75.07"},
        "ocnli": {"accuracy": "68.50"},
        "lcqmc": {"accuracy": "85.49"},
        "bq": {"accuracy": "83.42"},
        "tnews": {"accuracy": "54.15"},
        "chnsenticorp": {"accuracy": "93.31"},
    },
    "MiniRBT-H256": {
        "cmrc2018": {"f1": "78.47", "em": "56.27"},
        "drcd": {"f1": "86.83", "em": "78.57"},
        "ocnli": {"accuracy": "68.73"},
        "lcqmc": {"accuracy": "86.81"},
        "bq": {"accuracy": "83.68"},
        "tnews": {"accuracy": "54.45"},
        "chnsenticorp": {"accuracy": "92.97"},
    },
    "MiniRBT-H288": {
        "cmrc2018": {"f1": "80.53", "em": "58.83"},
        "drcd": {"f1": "87.1", "em": "78.73"},
        "ocnli": {"accuracy": "68.32"},
        "lcqmc": {"accuracy": "86.38"},
        "bq": {"accuracy": "83.77"},
        "tnews": {"accuracy": "54.62"},
        "chnsenticorp": {"accuracy": "92.83"},
    },
}

# The same in percent of RoBERTa's.
PUBLISHED_RELATIVE: Figures = {
    "RBT6 (KD)": {
        "cmrc2018": {"f1": "96.7", "em": "94.6"},
        "drcd": {"f1": "96.7", "em": "95"},
        "ocnli": {"accuracy": "95.1"},
        "lcqmc": {"accuracy": "99.4"},
        "bq": {"accuracy": "98.6"},
        "tnews": {"accuracy": "96.3"},
        "chnsenticorp": {"accuracy": "98.5"},
    },
    "RBT3": {
        "cmrc2018": {"f1": "92", "em": "84.9"},
        "drcd": {"f1": "91", "em": "86.8"},
        "ocnli": {"accuracy": "91.1"},
        "lcqmc": {"accuracy": "98"},
        "bq": {"accuracy": "98.5"},
        "tnews": {"accuracy": "96.1"},
        "chnsenticorp": {"accuracy": "98.9"},
    },
    "RBT4-H312": {
        "cmrc2018": {"f1": "89.2", "em": "80.8"},
        "drcd": {"f1": "89.1", "em": "84"},
        "ocnli": {"accuracy": "89.4"},
        "lcqmc": {"accuracy": "96"},
        "bq": {"accuracy": "97.3"},
        "tnews": {"accuracy": "93.9"},
        "chnsenticorp": {"accuracy": "98.3"},
    },
    "MiniRBT-H256": {
        "cmrc2018": {"f1": "89.9", "em": "82.8"},
        "drcd": {"f1": "92", "em": "87.9"},
        "ocnli": {"accuracy": "89.7"},
        "lcqmc": {"accuracy": "97.5"},
        "bq": {"accuracy": "97.6"},
        "tnews": {"accuracy": "94.4"},
        "chnsenticorp": {"accuracy": "98"},
    },
    "MiniRBT-H288": {
        "cmrc2018": {"f1": "92.2", "em": "86.5"},
        "drcd": {"f1": "92.3", "em": "88.1"},
        "ocnli": {"accuracy": "89.2"},
        "lcqmc": {"accuracy": "97"},
        "bq": {"accuracy": "97.7"},
        "tnews": {"accuracy": "94.7"},
        "chnsenticorp": {"accuracy": "97.8"},
    },
}

# Two-stage distillation against one-stage.
PUBLISHED_STAGES: Figures = {
    "MiniRBT-H256 (two-stage)": {
        "cmrc2018": {"f1": "77.97", "em": "54.6"},
        "ocnli": {"accuracy": "69.11"},
        "lcqmc": {"accuracy": "86.58"},
        "bq": {"accuracy": "83.74"},
        "tnews": {"accuracy": "54.12"},
    },
    "MiniRBT-H256 (one-stage)": {
        "cmrc2018": {"f1": "77.57", "em": "54.27"},
        "ocnli": {"accuracy": "68.32"},
        "lcqmc": {"accuracy": "86.39"},
        "bq": {"accuracy": "83.55"},
        "tnews": {"accuracy": "53.94"},
    },
}
