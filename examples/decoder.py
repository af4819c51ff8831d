"""A decoder-only transformer for next-token prediction in plain Keras, as GPT-2 is built.

Learned positions, pre-LayerNormalization, causal multi-head attention, a GELU MLP of four times the width, and a head
that is tied to the token embedding (`keras.layers.ReversibleEmbedding`). Only layers of Keras are used, so that a saved
file loads without code of its own. The loss is the cross-entropy of the logits at every position.

With the head tied, the gradient of the embedding is one dense matrix, and positions are looked up once: the whole step
of any optimizer can be analysed (--map full, --lyapunov). An embedding by itself, whose rows a batch looks up twice,
makes Keras' Adam square each row by itself, and sdkeras refuses that step.
"""

import keras


def build(vocabulary: int, context: int, width: int, depth: int, heads: int) -> keras.Model:
    """The model, not compiled: token ids [batch, context] to logits [batch, context, vocabulary].

    GPT-2 small is build(50257, 1024, 768, 12, 12), 124,439,808 parameters; `context` is the length of every sample.
    First weights are drawn from Keras' global seed (`keras.utils.set_random_seed`).
    """

    def normal(scale: float = 1.0) -> keras.initializers.Initializer:
        # Without a seed of its own: attention clones it for queries, keys and values, which would be equal.
        return keras.initializers.RandomNormal(stddev=0.02 * scale)

    def normalized(x, name):
        return keras.layers.LayerNormalization(epsilon=1e-5, name=name)(x)

    residual = (2 * depth) ** -0.5  # GPT-2's: what 2 depth branches add has then the variance of one
    tokens = keras.Input((context,), dtype="int32", name="tokens")
    words = keras.layers.ReversibleEmbedding(vocabulary, width, embeddings_initializer=normal(), name="words")
    # 0 .. context - 1, made of the input, since a functional model saves no constants.
    row = keras.ops.cumsum(keras.ops.ones_like(tokens[0]), axis=0) - 1
    positions = keras.layers.Embedding(context, width, embeddings_initializer=normal(), name="positions")
    x = words(tokens) + positions(row)
    for block in range(depth):
        name = f"block{block}"
        attention = keras.layers.MultiHeadAttention(
            heads, width // heads, kernel_initializer=normal(), name=f"{name}_attention"
        )
        inner = normalized(x, f"{name}_before_attention")
        x = x + attention(inner, inner, use_causal_mask=True)
        inner = normalized(x, f"{name}_before_mlp")
        wide = keras.layers.Dense(4 * width, "gelu", kernel_initializer=normal(), name=f"{name}_wide")
        narrow = keras.layers.Dense(width, kernel_initializer=normal(residual), name=f"{name}_narrow")
        x = x + narrow(wide(inner))
    return keras.Model(tokens, words(normalized(x, "last"), reverse=True), name="decoder")


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """The model with the mean cross-entropy of the next token, and its accuracy."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model
