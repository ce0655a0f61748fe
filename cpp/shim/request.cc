// Shim: a request, by its setters.
#include "build.h"

#include "detect.h"
#include "numbers.h"

#include <list>

namespace cuelight::trtllm
{
namespace
{
template <class Sampling>
Sampling sampling(SamplingOptions const& options)
{
    Sampling config;
    given(options.beam_width, [&](auto v) { config.setBeamWidth(v); });
    given(options.num_return_sequences, [&](auto v) { config.setNumReturnSequences(v); });
    given(options.top_k, [&](auto v) { config.setTopK(v); });
    given(options.top_p, [&](auto v) { config.setTopP(v); });
    given(options.top_p_min, [&](auto v) { config.setTopPMin(v); });
    given(options.top_p_reset_ids, [&](auto v) { config.setTopPResetIds(v); });
    given(options.top_p_decay, [&](auto v) { config.setTopPDecay(v); });
    given(options.seed, [&](auto v) { config.setSeed(v); });
    given(options.temperature, [&](auto v) { config.setTemperature(v); });
    given(options.min_tokens, [&](auto v) { config.setMinTokens(v); });
    given(options.beam_search_diversity_rate, [&](auto v) { config.setBeamSearchDiversityRate(v); });
    given(options.repetition_penalty, [&](auto v) { config.setRepetitionPenalty(v); });
    given(options.presence_penalty, [&](auto v) { config.setPresencePenalty(v); });
    given(options.frequency_penalty, [&](auto v) { config.setFrequencyPenalty(v); });
    given(options.length_penalty, [&](auto v) { config.setLengthPenalty(v); });
    given(options.early_stopping, [&](auto v) { config.setEarlyStopping(v); });
    given(options.no_repeat_ngram_size, [&](auto v) { config.setNoRepeatNgramSize(v); });
    given(options.min_p, [&](auto v) { config.setMinP(v); });
    if constexpr (HasPromptIgnoreLength<Sampling>::value)
    {
        given(options.prompt_ignore_length, [&](auto v) { config.setPromptIgnoreLength(v); });
    }
    else if (options.prompt_ignore_length)
    {
        unavailable("prompt_ignore_length");
    }
    return config;
}

std::list<tle::VecTokens> asList(Words const& words, char const* what)
{
    auto const lists = split(words, what);
    return {lists.begin(), lists.end()};
}

// A dense tensor, since there is no sparse form.
tle::Tensor bias(RequestOptions const& options, RequestContext const& context)
{
    if (options.bias_ids.size() != options.bias_values.size())
    {
        throw Unusable("logit bias: there must be one value for each token id");
    }
    if (context.vocab_size == 0)
    {
        throw Unusable("logit bias: the engine was opened without vocab_size");
    }
    std::vector<float> dense(context.vocab_size, 0.f);
    for (std::size_t i = 0; i < options.bias_ids.size(); i++)
    {
        auto const id = options.bias_ids[i];
        if (id < 0 || static_cast<std::uint32_t>(id) >= context.vocab_size)
        {
            throw Unusable("logit bias: token id " + std::to_string(id) + " is outside of the vocabulary of "
                + std::to_string(context.vocab_size));
        }
        dense[static_cast<std::size_t>(id)] += options.bias_values[i];
    }
    std::int64_t const shape[] = {static_cast<std::int64_t>(dense.size())};
    auto tensor = tle::Tensor::cpu(dataType(context.bias_type), tle::Shape(shape, 1));
    if (context.bias_type == "float32")
    {
        std::memcpy(tensor.getData(), dense.data(), dense.size() * sizeof(float));
        return tensor;
    }
    bool const half = context.bias_type == "float16";
    auto* const out = static_cast<std::uint16_t*>(tensor.getData());
    for (std::size_t i = 0; i < dense.size(); i++)
    {
        out[i] = half ? toHalf(dense[i]) : toBfloat16(dense[i]);
    }
    return tensor;
}

tle::GuidedDecodingParams guide(std::string const& kind, std::optional<std::string> const& text)
{
    using Type = tle::GuidedDecodingParams::GuideType;
    std::pair<char const*, Type> const known[]
        = {{"JSON", Type::kJSON}, {"JSON_SCHEMA", Type::kJSON_SCHEMA}, {"REGEX", Type::kREGEX},
            {"EBNF_GRAMMAR", Type::kEBNF_GRAMMAR}, {"STRUCTURAL_TAG", Type::kSTRUCTURAL_TAG}};
    for (auto const& [name, type] : known)
    {
        if (kind == name)
        {
            return tle::GuidedDecodingParams(type, text);
        }
    }
    throw Unusable("guide kind " + kind + ": must be JSON, JSON_SCHEMA, REGEX, EBNF_GRAMMAR or STRUCTURAL_TAG");
}

template <class Params>
Params contextPhase(Handoff const& handoff)
{
    if (!handoff.has_state || handoff.state.empty())
    {
        throw Unusable("a generation-only request needs the opaque state of its context phase");
    }
    auto const draft = handoff.draft_tokens.empty() ? std::nullopt : std::optional(handoff.draft_tokens);
    std::vector<char> const state(handoff.state.begin(), handoff.state.end());
    Params params(handoff.first_tokens, handoff.context_request, state, draft);
    if constexpr (HasCtxDpRank<Params>::value)
    {
        given(handoff.dp_rank, [&](auto v) { params.setCtxDpRank(v); });
    }
    if constexpr (HasEndpoint<Params>::value)
    {
        given(handoff.endpoint, [&](auto const& v) { params.setDisaggInfoEndpoint(v); });
    }
    return params;
}

void setPhase(tle::Request& request, RequestOptions const& options)
{
    switch (options.phase)
    {
    case Phase::Whole: return;
    case Phase::ContextOnly: request.setRequestType(tle::RequestType::REQUEST_TYPE_CONTEXT_ONLY); return;
    case Phase::GenerationOnly: break;
    }
    if (!options.handoff)
    {
        throw Unusable("a generation-only request needs the handoff of its context phase");
    }
    request.setRequestType(tle::RequestType::REQUEST_TYPE_GENERATION_ONLY);
    request.setContextPhaseParams(contextPhase<tle::ContextPhaseParams>(*options.handoff));
}

template <class Request>
void setRecent(Request& request, RequestOptions const& options)
{
    if constexpr (HasCacheSalt<Request>::value)
    {
        given(options.cache_salt, [&](std::uint64_t v) { request.setCacheSaltID(v); });
    }
    else if constexpr (HasCacheSaltText<Request>::value)
    {
        given(options.cache_salt, [&](std::uint64_t v) { request.setCacheSalt(std::to_string(v)); });
    }
    else if (options.cache_salt)
    {
        unavailable("cache_salt");
    }
    if constexpr (HasDisaggRequestId<Request>::value)
    {
        given(options.disagg_request_id, [&](std::uint64_t v) { request.setDisaggRequestId(v); });
    }
    else if (options.disagg_request_id)
    {
        unavailable("disagg_request_id");
    }
}

void setLora(tle::Request& request, RequestOptions const& options)
{
    if (!options.lora_id)
    {
        return;
    }
    std::optional<tle::Tensor> weights;
    std::optional<tle::Tensor> config;
    given(options.lora_weights, [&](auto const& v) { weights = buildTensor(v); });
    given(options.lora_config, [&](auto const& v) { config = buildTensor(v); });
    request.setLoraConfig(tle::LoraConfig(*options.lora_id, weights, config));
}

void setSpeculative(tle::Request& request, RequestOptions const& options)
{
    if (!options.draft_tokens.empty())
    {
        request.setExternalDraftTokensConfig(
            tle::ExternalDraftTokensConfig(options.draft_tokens, std::nullopt, options.draft_acceptance_threshold));
    }
    if (options.lookahead_window && options.lookahead_ngram && options.lookahead_verification)
    {
        request.setLookaheadConfig(tle::LookaheadDecodingConfig(
            *options.lookahead_window, *options.lookahead_ngram, *options.lookahead_verification));
    }
}

tle::OutputConfig outputs(RequestOptions const& options)
{
    tle::OutputConfig config;
    config.returnLogProbs = options.return_log_probs;
    config.returnGenerationLogits = options.return_generation_logits;
    config.returnPerfMetrics = options.return_perf_metrics;
    config.excludeInputFromOutput = options.exclude_input;
    return config;
}
} // namespace

tle::DataType dataType(std::string const& name)
{
    std::pair<char const*, tle::DataType> const known[] = {{"float32", tle::DataType::kFP32},
        {"float16", tle::DataType::kFP16}, {"bfloat16", tle::DataType::kBF16}, {"float8", tle::DataType::kFP8},
        {"int64", tle::DataType::kINT64}, {"int32", tle::DataType::kINT32}, {"int8", tle::DataType::kINT8},
        {"uint8", tle::DataType::kUINT8}, {"bool", tle::DataType::kBOOL}};
    for (auto const& [text, type] : known)
    {
        if (name == text)
        {
            return type;
        }
    }
    throw Unusable("data type " + name + ": must be float32, float16, bfloat16, float8, int64, int32, int8, uint8 or bool");
}

tle::Tensor buildTensor(HostTensor const& from)
{
    auto tensor = tle::Tensor::cpu(dataType(from.type), tle::Shape(from.shape.data(), from.shape.size()));
    if (tensor.getSizeInBytes() != from.bytes.size())
    {
        throw Unusable("tensor of " + std::to_string(tensor.getSizeInBytes()) + " bytes by its shape and type has "
            + std::to_string(from.bytes.size()));
    }
    std::memcpy(tensor.getData(), from.bytes.data(), from.bytes.size());
    return tensor;
}

tle::Request buildRequest(RequestOptions const& options, RequestContext const& context)
{
    tle::Request request(options.tokens, options.max_tokens, options.streaming);
    request.setSamplingConfig(sampling<tle::SamplingConfig>(options.sampling));
    request.setOutputConfig(outputs(options));
    given(options.end_id, [&](auto v) { request.setEndId(v); });
    given(options.pad_id, [&](auto v) { request.setPadId(v); });
    if (!options.stop_words.lengths.empty())
    {
        request.setStopWords(asList(options.stop_words, "stop words"));
    }
    if (!options.bad_words.lengths.empty())
    {
        request.setBadWords(asList(options.bad_words, "bad words"));
    }
    if (!options.bias_ids.empty() || !options.bias_values.empty())
    {
        request.setEmbeddingBias(bias(options, context));
    }
    given(options.priority, [&](auto v) { request.setPriority(v); });
    given(options.client_id, [&](auto v) { request.setClientId(v); });
    given(options.allotted_ms, [&](auto v) { request.setAllottedTimeMs(std::chrono::milliseconds(static_cast<std::int64_t>(v))); });
    given(options.guide_kind, [&](auto const& v) { request.setGuidedDecodingParams(guide(v, options.guide)); });
    given(options.processor, [&](auto const& v) { request.setLogitsPostProcessorName(v); });
    if (options.return_all_generated_tokens)
    {
        request.setReturnAllGeneratedTokens(true);
    }
    if (options.own_processor)
    {
        if (!context.own)
        {
            throw Unusable("the engine was opened without a hook for logits");
        }
        request.setLogitsPostProcessor(context.own);
    }
    setPhase(request, options);
    setRecent(request, options);
    setLora(request, options);
    setSpeculative(request, options);
    return request;
}
} // namespace cuelight::trtllm
