"""The figures published for MiniMind-O and for what it was compared with, to stand beside ours.

They were measured on the released weights, on other questions and by another recogniser: a comparison for users of those weights; the nano
model is not expected to reach them, nor does reaching them there mean anything.
"""
CONSISTENCY_CER = {("dense", 768): 0.0897, ("moe", 768): 0.0900, ("dense", 512): 0.1745, ("dense", 384): 0.2767}  # by Talker width
CLONING_COSINE = {"dense": 0.5995, "moe": 0.5937}  # CAM++, mean over 12 voices
T2A_BUCKETS = ((1, 15), (16, 30))  # words
T2A = {  # per bucket: (CER, WER), 20 questions
    "MiniMind-O": ((0.0531, 0.0417), (0.1327, 0.1420)),
    "Mini-Omni": ((0.0195, 0.0384), (0.0038, 0.0052)),
    "Mini-Omni2": ((0.0503, 0.0584), (0.0062, 0.0076)),
}
LATENCY_MS = {"first text": 140, "first audio": 260}  # from the end of the speaker's turn
