// Shim: from plain options to TensorRT-LLM's own objects. Whatever is wrong with them is thrown as Unusable.
#pragma once

#include "error.h"
#include "types.h"

#include "tensorrt_llm/executor/executor.h"

#include <functional>

namespace cuelight::trtllm
{
namespace tle = tensorrt_llm::executor;

tle::ExecutorConfig buildConfig(EngineOptions const& options, std::optional<tle::LogitsPostProcessorConfig> const& logits);

// The parts of an engine that requests refer to.
struct RequestContext
{
    std::uint32_t vocab_size = 0;
    std::string bias_type;
    tle::LogitsPostProcessor own; // of requests with `own_processor`
};

tle::Request buildRequest(RequestOptions const& options, RequestContext const& context);

// Memory of its own.
tle::Tensor buildTensor(HostTensor const& from);
tle::DataType dataType(std::string const& name);

// One list for each length; throws if they do not cover the tokens.
std::vector<std::vector<std::int32_t>> split(Words const& words, char const* what);

// Lets `set` have the value, if there is one.
template <class T, class Set>
void given(std::optional<T> const& value, Set&& set)
{
    if (value)
    {
        std::forward<Set>(set)(*value);
    }
}

// For an option that this release does not have.
[[noreturn]] void unavailable(char const* option);
} // namespace cuelight::trtllm
