// Stand-in: from logits to a token, by the rules of a request.
#pragma once

#include "tensorrt_llm/executor/executor.h"

namespace cuelight::standin
{
// A request's sampling, read once.
struct Rules
{
    std::optional<std::int32_t> endId;
    std::int32_t minTokens = 0;
    std::int32_t topK = 0;
    float topP = 0.f;
    float minP = 0.f;
    float temperature = 1.f;
    float repetition = 1.f;
    float presence = 0.f;
    float frequency = 0.f;
    std::optional<std::int32_t> ignored; // tokens of the prompt without presence and frequency penalties; all by default
    std::int32_t noRepeatNgram = 0;
    std::uint64_t seed = 0;
    std::vector<float> bias;
    std::list<std::vector<std::int32_t>> badWords;
    std::list<std::vector<std::int32_t>> stopWords;
    bool greedy = true;
    bool needsLogits = false;

    Rules() = default;
    // Throws if the bias is not one number for each of `vocab` tokens.
    Rules(tensorrt_llm::executor::Request const& request, std::size_t vocab);
};

struct Chosen
{
    std::int32_t token;
    float logProb;
};

// The next token; changes `logits` in place. The random number depends on the seed, `stream` and the position only.
Chosen choose(Rules const& rules, std::vector<float>& logits, std::vector<std::int32_t> const& tokens,
    std::size_t promptLen, std::uint64_t stream);

// Whether the output ends with a stop word.
bool endsWithStop(Rules const& rules, std::vector<std::int32_t> const& tokens, std::size_t promptLen);

// The built-in rule: after tokens with this hash, which token comes next, and how likely.
Chosen builtIn(std::uint64_t hash, std::size_t vocab);
void builtInLogits(std::uint64_t hash, float* logits, std::size_t vocab);
std::uint64_t extendHash(std::uint64_t hash, std::int32_t token);
} // namespace cuelight::standin
