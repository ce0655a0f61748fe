// Shim: logits from tensors to the hook and back.
#include "logits.h"

#include "numbers.h"
#include "stream.h"

namespace cuelight::trtllm
{
LogitsBridge::LogitsBridge(std::shared_ptr<LogitsHook> hook)
    : mHook(std::move(hook))
{
}

tle::LogitsPostProcessor LogitsBridge::processor(std::string const& name)
{
    return [self = shared_from_this(), name](tle::IdType id, tle::Tensor& logits, tle::BeamTokens const& tokens,
               tle::StreamPtr const& stream, std::optional<tle::IdType> client)
    { named("logits post-processor", [&] { self->one(name, id, logits, tokens, stream, client); }); };
}

tle::LogitsPostProcessorBatched LogitsBridge::batched()
{
    return [self = shared_from_this()](std::vector<tle::IdType> const& ids, std::vector<tle::Tensor>& logits,
               std::vector<std::reference_wrapper<tle::BeamTokens const>> const& tokens,
               tle::StreamPtr const& stream, std::vector<std::optional<tle::IdType>> const& clients)
    {
        named("batched logits post-processor",
            [&]
            {
                for (std::size_t i = 0; i < ids.size(); i++)
                {
                    self->one(tle::Request::kBatchedPostProcessorName, ids[i], logits[i], tokens[i].get(), stream,
                        clients[i]);
                }
            });
    };
}

void LogitsBridge::one(std::string const& name, tle::IdType id, tle::Tensor& logits, tle::BeamTokens const& tokens,
    tle::StreamPtr const& stream, std::optional<tle::IdType> client)
{
    auto const place = logits.getMemoryType();
    if (place != tle::MemoryType::kGPU && place != tle::MemoryType::kUVM)
    {
        onHost(name, id, logits, tokens, client);
        return;
    }
    auto host = logits.copyToPooledPinned(stream);
    waitFor(stream);
    if (mStream != stream)
    {
        waitFor(mStream);
        mStream = stream;
    }
    mInFlight.clear(); // what was copied to the device before this wait is there
    onHost(name, id, host, tokens, client);
    logits.setFrom(host, stream);
    mInFlight.push_back(std::move(host));
}

void LogitsBridge::onHost(std::string const& name, tle::IdType id, tle::Tensor& logits,
    tle::BeamTokens const& tokens, std::optional<tle::IdType> client)
{
    auto const count = logits.getSize();
    auto const type = logits.getDataType();
    if (type == tle::DataType::kFP32)
    {
        rows(name, id, static_cast<float*>(logits.getData()), count, tokens, client);
        return;
    }
    if (type != tle::DataType::kFP16 && type != tle::DataType::kBF16)
    {
        throw Unusable("logits of data type " + std::to_string(static_cast<int>(type)) + " are not supported");
    }
    bool const half = type == tle::DataType::kFP16;
    auto* const data = static_cast<std::uint16_t*>(logits.getData());
    mScratch.resize(count);
    for (std::size_t i = 0; i < count; i++)
    {
        mScratch[i] = half ? fromHalf(data[i]) : fromBfloat16(data[i]);
    }
    rows(name, id, mScratch.data(), count, tokens, client);
    for (std::size_t i = 0; i < count; i++)
    {
        data[i] = half ? toHalf(mScratch[i]) : toBfloat16(mScratch[i]);
    }
}

// The tensor is [.., beams, vocabulary]; beams are counted by the token lists.
void LogitsBridge::rows(std::string const& name, tle::IdType id, float* logits, std::size_t count,
    tle::BeamTokens const& tokens, std::optional<tle::IdType> client)
{
    if (tokens.empty() || count % tokens.size() != 0)
    {
        throw Unusable("logits of " + std::to_string(count) + " numbers for " + std::to_string(tokens.size())
            + " beams");
    }
    auto const width = count / tokens.size();
    for (std::size_t beam = 0; beam < tokens.size(); beam++)
    {
        LogitsRow row;
        row.processor = name;
        row.sequence = id;
        row.has_client = client.has_value();
        row.client = client.value_or(0);
        row.beam = static_cast<std::int32_t>(beam);
        row.tokens = tokens[beam].data();
        row.tokens_len = tokens[beam].size();
        row.logits = logits + beam * width;
        row.logits_len = width;
        mHook->row(row);
    }
}
} // namespace cuelight::trtllm
