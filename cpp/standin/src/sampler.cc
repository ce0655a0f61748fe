// Stand-in: penalties, bans, truncation, and the built-in rule.
#include "sampler.h"

#include "check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace cuelight::standin
{
namespace
{
constexpr float kPeak = 8.f;
constexpr float kSecond = 6.f;
constexpr float kOff = -std::numeric_limits<float>::infinity();

std::uint64_t scramble(std::uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

bool endsWith(std::vector<std::int32_t> const& tokens, std::vector<std::int32_t> const& word, std::size_t count)
{
    return tokens.size() >= count && std::equal(word.begin(), word.begin() + static_cast<std::ptrdiff_t>(count),
                                         tokens.end() - static_cast<std::ptrdiff_t>(count));
}

void penalize(Rules const& rules, std::vector<float>& logits, std::vector<std::int32_t> const& tokens,
    std::size_t promptLen)
{
    if (rules.repetition == 1.f && rules.presence == 0.f && rules.frequency == 0.f)
    {
        return;
    }
    auto const from = rules.ignored ? static_cast<std::size_t>(std::max(*rules.ignored, 0)) : promptLen;
    std::vector<std::int32_t> inOutput(logits.size(), 0);
    std::vector<bool> seen(logits.size(), false);
    for (std::size_t i = 0; i < tokens.size(); i++)
    {
        auto const token = static_cast<std::size_t>(tokens[i]);
        if (token >= logits.size())
        {
            continue;
        }
        seen[token] = true;
        inOutput[token] += i >= from ? 1 : 0;
    }
    for (std::size_t token = 0; token < logits.size(); token++)
    {
        auto& logit = logits[token];
        if (seen[token])
        {
            logit = logit > 0.f ? logit / rules.repetition : logit * rules.repetition;
        }
        if (inOutput[token] > 0)
        {
            logit -= rules.presence + rules.frequency * static_cast<float>(inOutput[token]);
        }
    }
}

void ban(Rules const& rules, std::vector<float>& logits, std::vector<std::int32_t> const& tokens,
    std::size_t promptLen)
{
    auto const off = [&](std::int32_t token)
    {
        if (token >= 0 && static_cast<std::size_t>(token) < logits.size())
        {
            logits[static_cast<std::size_t>(token)] = kOff;
        }
    };
    for (auto const& word : rules.badWords)
    {
        if (!word.empty() && endsWith(tokens, word, word.size() - 1))
        {
            off(word.back());
        }
    }
    if (rules.endId && tokens.size() - promptLen < static_cast<std::size_t>(std::max(rules.minTokens, 0)))
    {
        off(*rules.endId);
    }
    auto const n = static_cast<std::size_t>(rules.noRepeatNgram);
    for (std::size_t i = 0; n > 0 && i + n <= tokens.size(); i++)
    {
        std::vector<std::int32_t> const head(tokens.begin() + static_cast<std::ptrdiff_t>(i),
            tokens.begin() + static_cast<std::ptrdiff_t>(i + n - 1));
        if (endsWith(tokens, head, n - 1))
        {
            off(tokens[i + n - 1]);
        }
    }
}

std::vector<double> softmax(std::vector<float> const& logits, float temperature)
{
    auto const highest = *std::max_element(logits.begin(), logits.end());
    std::vector<double> shares(logits.size());
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); i++)
    {
        shares[i] = std::exp(static_cast<double>(logits[i] - highest) / temperature);
        sum += shares[i];
    }
    for (auto& share : shares)
    {
        share /= sum;
    }
    return shares;
}

std::size_t draw(Rules const& rules, std::vector<float> const& logits, double number)
{
    auto const shares = softmax(logits, rules.temperature);
    std::vector<std::size_t> order(shares.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return shares[a] > shares[b]; });
    auto const most = rules.topK > 0 ? std::min<std::size_t>(static_cast<std::size_t>(rules.topK), order.size())
                                     : order.size();
    std::size_t kept = 0;
    double mass = 0;
    while (kept < most && (kept == 0 || rules.topP <= 0.f || mass < static_cast<double>(rules.topP))
        && shares[order[kept]] >= static_cast<double>(rules.minP) * shares[order[0]])
    {
        mass += shares[order[kept]];
        kept++;
    }
    auto target = number * mass;
    for (std::size_t i = 0; i < kept; i++)
    {
        target -= shares[order[i]];
        if (target < 0)
        {
            return order[i];
        }
    }
    return order[kept > 0 ? kept - 1 : 0];
}
} // namespace

Rules::Rules(tensorrt_llm::executor::Request const& request, std::size_t vocab)
{
    auto const sampling = request.getSamplingConfig();
    endId = request.getEndId();
    minTokens = sampling.getMinTokens().value_or(0);
    topK = sampling.getTopK().value_or(0);
    topP = sampling.getTopP().value_or(0.f);
    minP = sampling.getMinP().value_or(0.f);
    temperature = sampling.getTemperature().value_or(1.f);
    repetition = sampling.getRepetitionPenalty().value_or(1.f);
    presence = sampling.getPresencePenalty().value_or(0.f);
    frequency = sampling.getFrequencyPenalty().value_or(0.f);
    ignored = sampling.getPromptIgnoreLength();
    noRepeatNgram = sampling.getNoRepeatNgramSize().value_or(0);
    seed = sampling.getSeed().value_or(0);
    badWords = request.getBadWords().value_or(decltype(badWords){});
    stopWords = request.getStopWords().value_or(decltype(stopWords){});
    greedy = topK == 1 || (topK == 0 && topP == 0.f);
    if (auto const tensor = request.getEmbeddingBias())
    {
        check(tensor->getDataType() == tensorrt_llm::executor::DataType::kFP32 && tensor->getSize() == vocab,
            "the embedding bias must be FP32 of shape [vocab_size]");
        auto const data = static_cast<float const*>(tensor->getData());
        bias.assign(data, data + vocab);
    }
    needsLogits = !greedy || !bias.empty() || !badWords.empty() || (endId && minTokens > 0) || noRepeatNgram > 0
        || repetition != 1.f || presence != 0.f || frequency != 0.f || request.getOutputConfig().returnGenerationLogits
        || request.getLogitsPostProcessorName() || request.getLogitsPostProcessor();
}

Chosen choose(Rules const& rules, std::vector<float>& logits, std::vector<std::int32_t> const& tokens,
    std::size_t promptLen, std::uint64_t stream)
{
    for (std::size_t i = 0; i < rules.bias.size(); i++)
    {
        logits[i] += rules.bias[i];
    }
    penalize(rules, logits, tokens, promptLen);
    ban(rules, logits, tokens, promptLen);
    auto const highest = std::max_element(logits.begin(), logits.end());
    check(std::isfinite(*highest), "no token is left to choose from");
    auto at = static_cast<std::size_t>(highest - logits.begin());
    if (!rules.greedy)
    {
        auto const bits = scramble(rules.seed ^ scramble(stream ^ scramble(tokens.size())));
        at = draw(rules, logits, static_cast<double>(bits >> 11) * 0x1.0p-53);
    }
    double sum = 0;
    for (auto const logit : logits)
    {
        sum += std::exp(static_cast<double>(logit - *highest));
    }
    return {static_cast<std::int32_t>(at), static_cast<float>(static_cast<double>(logits[at] - *highest) - std::log(sum))};
}

bool endsWithStop(Rules const& rules, std::vector<std::int32_t> const& tokens, std::size_t promptLen)
{
    return std::any_of(rules.stopWords.begin(), rules.stopWords.end(),
        [&](auto const& word)
        { return !word.empty() && tokens.size() - promptLen >= word.size() && endsWith(tokens, word, word.size()); });
}

Chosen builtIn(std::uint64_t hash, std::size_t vocab)
{
    auto const others = std::max(static_cast<double>(vocab) - 2.0, 0.0);
    auto const second = vocab > 1 ? std::exp(static_cast<double>(kSecond - kPeak)) : 0.0;
    auto const sum = 1.0 + second + others * std::exp(-static_cast<double>(kPeak));
    return {static_cast<std::int32_t>(scramble(hash) % vocab), static_cast<float>(-std::log(sum))};
}

void builtInLogits(std::uint64_t hash, float* logits, std::size_t vocab)
{
    std::fill_n(logits, vocab, 0.f);
    auto const peak = static_cast<std::size_t>(scramble(hash) % vocab);
    logits[(peak + 1) % vocab] = kSecond;
    logits[peak] = kPeak;
}

std::uint64_t extendHash(std::uint64_t hash, std::int32_t token)
{
    return (hash ^ static_cast<std::uint32_t>(token)) * 0x100000001b3ULL + 0x9e37ULL;
}
} // namespace cuelight::standin
