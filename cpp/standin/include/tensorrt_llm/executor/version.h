// Stand-in for tensorrt_llm/executor/version.h: the version that these headers belong to.
#pragma once

namespace tensorrt_llm::executor
{
static auto constexpr kTensorRtLlmVersion = "1.2.1-standin";
} // namespace tensorrt_llm::executor
