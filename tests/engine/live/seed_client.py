import openai

client = openai.Client(base_url="http://localhost:30000/v1", api_key="none")

response = client.chat.completions.create(
    model="smollm2",
    messages=[{"role": "user", "content": "Explain quantum entanglement"}],
    extra_body={
        "return_attention_tokens": True,
        "attention_fingerprint_only": True,  # Privacy: no raw attention
    },
    stream=True,
)

for chunk in response:
    if hasattr(chunk, "attention_tokens"):
        for token in chunk.attention_tokens:
            zone = token.get("manifold")  # syntax_floor, semantic_bridge, etc.
            coherence = token.get("fingerprint", [0] * 20)[3]  # Entropy signal
            print(f"Zone: {zone}, Coherence: {1 - coherence:.2f}")
