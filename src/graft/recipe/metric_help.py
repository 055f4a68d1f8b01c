"""What each metric of `evaluate.metrics` measures, in a line; needs no torch."""

# Those of every stage that has losses, texts or classes, then those of single stages.
HELP = {
    "perplexity": "exp of the mean loss of a token of the answers; lower is better",
    "loss": "mean loss; lower is better",
    "token_accuracy": "share of the answers' tokens that are the likeliest, 0 to 1",
    "accuracy": "share of rows or words whose class is right; of pairs whose better answer wins; 0 to 1",
    "precision": "of what was called a class, the share that is: mean over classes, or of entities, 0 to 1",
    "recall": "of what is a class, the share that was found: mean over classes, or of entities, 0 to 1",
    "f1": "harmonic mean of precision and recall: mean over classes, or of entities, 0 to 1",
    "bleu": "overlap of up to four words with the references, of all rows together (sacrebleu), 0 to 100",
    "chrf": "overlap of up to six letters with the references, of all rows together (sacrebleu), 0 to 100",
    "rouge_l": "longest common subsequence of words, F, mean over rows (rouge_score), 0 to 100",
    "exact_match": "share of texts equal to a reference, without case, articles and punctuation, 0 to 1",
    "distinct_1": "different words over all words of the answers, 0 to 1",
    "distinct_2": "different pairs of words over all pairs of the answers, 0 to 1",
    "ranked": "stage preference: share of pairs whose better answer is the likelier one, 0 to 1",
    "margin": "stages preference, reward: mean lead of the better answer's reward",
    "calibration": "stage reward: error of its probabilities of being better; lower is better",
    "length_bias": "stage reward: correlation of reward and length of an answer; 0 is none",
    "reward": "stages that write: mean reward of the answers",
    "judge": "stages that write: mean reward by a judge that training did not use",
    "kl": "stages that write: divergence from the model before training, of an answer",
    "length": "stages that write: mean tokens of an answer",
    "ended": "stages that write: share of answers that end by themselves",
}
OWN = "module:function or file.py:function"  # what a metric of the user's own is called
OWN_HELP = "yours: (predictions, references, rows) -> a number, or a dict of numbers"
