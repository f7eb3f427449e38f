"""The published figures: the tables of the MiniRBT README (github.com/iflytek/MiniRBT), dev sets, as printed there; and of peers.

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

# The best learning rate of each model; the small models are RBT3, RBT4-H312, MiniRBT-H256 and MiniRBT-H288.
RATE = "learning rate"
PUBLISHED_LEARNING_RATES: Figures = {
    "RoBERTa": {
        "cmrc2018": {RATE: "3e-5"},
        "drcd": {RATE: "3e-5"},
        "ocnli": {RATE: "2e-5"},
        "lcqmc": {RATE: "2e-5"},
        "bq": {RATE: "3e-5"},
        "tnews": {RATE: "2e-5"},
        "chnsenticorp": {RATE: "2e-5"},
    },
    "the small models": {
        "cmrc2018": {RATE: "1e-4"},
        "drcd": {RATE: "1e-4"},
        "ocnli": {RATE: "5e-5"},
        "lcqmc": {RATE: "1e-4"},
        "bq": {RATE: "1e-4"},
        "tnews": {RATE: "1e-4"},
        "chnsenticorp": {RATE: "1e-4"},
    },
}

# ---------------------------------------------------------------- peers on CLUE, dev sets

CLUE_TASKS = ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc", "csl", "cmrc2018")


def clue_row(figures: str) -> dict[str, dict[str, str]]:
    """The figures of a model in the order of CLUE_TASKS, with blanks between; the last ones are F1 and EM of CMRC 2018."""
    *accuracies, f1, em = [*figures.split(), "", ""][:9]
    row = {task: {"accuracy": accuracy} for task, accuracy in zip(CLUE_TASKS, accuracies)}
    return {**row, "cmrc2018": {"f1": f1, "em": em}} if f1 else row


# By source: model -> figures.
PEERS: dict[str, Figures] = {
    "¹": {
        "ERNIE 3.0 Medium (6L, 768H)": clue_row("73.37 57.00 60.67 80.64 76.88 79.28 81.60 87.30 65.83"),
        "RBT6 (6L, 768H)": clue_row("73.45 56.82 59.64 79.36 73.32 76.64 80.67 84.77 62.72"),
        "TinyBERT6 (6L, 768H)": clue_row("72.22 55.70 54.48 79.12 74.07 77.63 80.17 83.75 63.03"),
        "ERNIE 3.0 Mini (6L, 384H)": clue_row("71.85 55.24 54.48 77.19 73.08 71.05 79.30 81.97 58.53"),
        "ERNIE 3.0 Micro (4L, 384H)": clue_row("71.15 55.05 53.83 74.81 70.41 69.08 76.50 77.82 53.77"),
        "ERNIE 3.0 Nano (4L, 312H)": clue_row("70.51 54.57 48.36 74.97 70.61 68.75 75.93 76.35 52.00"),
        "TinyBERT4 (4L, 312H)": clue_row("69.07 54.02 39.71 73.94 69.59 70.07 75.07 69.34 46.04"),
        "RBT3 (3L, 768H)": clue_row("70.95 55.53 59.18 76.20 70.71 67.11 76.63 78.63 55.73"),
    },
    "²": {"PP-MiniLM (6L, 768H)": clue_row("74.14 57.43 61.75 81.01 76.17 86.18 79.17")},
}
PEERS_SOURCES = {
    "¹": "github.com/PaddlePaddle/PaddleNLP, model_zoo/ernie-3.0/README.md at 07dfedf; by examples/benchmark/clue/README.md the best evaluation of one run, every 100 steps "
    "(CMRC 2018: every epoch), over batches of 16, 32, 64 and learning rates of 1e-5, 2e-5, 3e-5, 5e-5 (CMRC 2018: 24, 32; 1e-5 to 3e-5); "
    "CLUEWSC2020 also with batches of 8, CLUEWSC2020 and IFLYTEK also without dropout.",
    "²": "github.com/PaddlePaddle/PaddleNLP, examples/model_compression/pp-minilm/README.md at 0042246: the best evaluation of one run, "
    "every 100 steps, over batches of 16, 32, 64 and learning rates of 3e-5, 5e-5, 1e-4.",
}
